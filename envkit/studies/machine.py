"""This machine: what it is, and how models are run on it. PyTorch is imported only where one is."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from envkit.benchmark.report_data import Machine
from envkit.training.config import TrainConfig


def machine(threads: int, dtype: str, device: str = "cpu") -> Machine:
    """This machine, for the manifest."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((ln.split(":", 1)[1].strip() for ln in lines if ln.startswith("model name")), name)
    return Machine(
        name, len(os.sched_getaffinity(0)), threads, dtype, card="" if device == "cpu" else _card()
    )


def _card() -> str:
    import torch

    return torch.cuda.get_device_name()


def resolve_dtype(config: TrainConfig) -> TrainConfig:
    """The configuration with what it leaves to the machine filled in."""
    if config.dtype != "auto":
        return config
    if config.device == "cpu":
        return replace(config, dtype=faster_dtype())
    import torch

    emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return replace(config, dtype="float32" if emulated else "bfloat16")


@functools.cache
def faster_dtype() -> str:
    """The dtype that this machine multiplies faster: some have instructions for bfloat16, others emulate it.

    float32 unless it is clearly slower, for it is more exact.
    """
    import torch

    seconds: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = torch.ones(64, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        times: list[float] = []
        for _ in range(30):
            started = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            times.append(time.perf_counter() - started)
        seconds[str(dtype)] = median(times)
    return "bfloat16" if seconds["torch.bfloat16"] < 0.7 * seconds["torch.float32"] else "float32"


def use_threads(threads: int | None = None) -> int:
    """Fix torch's thread count (default: all cores this process may use); returns it."""
    import torch

    count = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    _keep_freed_memory()
    return count


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks: the next step wants the same ones.

    It would give them back to the kernel, and a training step would then spend a sixth of its time on
    page faults. Other C libraries have no ``mallopt`` and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
