"""Describe this machine and choose dtype and threads for it. PyTorch is imported only when it is needed."""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from envkit.measure.report.data import Machine
from envkit.models import choose_model
from envkit.training.config import TrainConfig
from envkit.training.learner.heap import keep_freed_memory, limit_kernel_caches

_CPUINFO: Final = Path("/proc/cpuinfo")
_STAT: Final = Path("/proc/stat")
_STATUS: Final = Path("/proc/self/status")
#: Flags of processors with bfloat16 matrix instructions: x86 with AMX or AVX-512, ARM.
_BFLOAT16_FLAGS: Final = frozenset({"amx_bf16", "avx512_bf16", "bf16", "svebf16"})
#: bfloat16 is worth its rounding only if it takes less than this share of float32's time.
_CLEARLY_FASTER: Final = 0.7
#: A machine is busy if other programs use more than this share of its cores, beside the cores left to them,
_MAX_OTHERS_SHARE: Final = 0.25
#: or the host takes more than this share of the processor time,
_MAX_STOLEN_SHARE: Final = 0.05
#: or equal timings differ by more than this factor.
_MAX_SPREAD: Final = 1.5
#: Seconds for which other programs are observed before a run chooses its threads.
_OBSERVED_S: Final = 0.5


def machine(threads: int, dtype: str, device: str = "cpu") -> Machine:
    """Describe this machine, for the manifest."""
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


def settle(config: TrainConfig, minutes: float | None, say: Callable[[str], None]) -> tuple[TrainConfig, int]:
    """Choose what a configuration leaves to this machine, and use the threads that other programs leave.

    Args:
        config: the settings.
        minutes: the run's budget, if it has one.
        say: told what is chosen and why.

    Returns:
        The configuration with a model and a dtype, and the number of threads.
    """
    config = resolve_model(config, minutes, say)
    threads = use_threads(free_threads(say))
    return resolve_dtype(config, say), threads


def resolve_model(config: TrainConfig, minutes: float | None, say: Callable[[str], None]) -> TrainConfig:
    """Replace model "auto" by the one that fits the budget and this machine, and ``say`` which and why."""
    if config.model != "auto":
        return config
    name, reason = choose_model(minutes)
    say(reason)
    return replace(config, model=name)


def resolve_dtype(config: TrainConfig, say: Callable[[str], None] = lambda line: None) -> TrainConfig:
    """Replace dtype "auto" by the dtype that this machine computes fastest; see `cpu_dtype`."""
    if config.dtype != "auto":
        return config
    if config.device == "cpu":
        return replace(config, dtype=cpu_dtype(say))
    import torch

    emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return replace(config, dtype="float32" if emulated else "bfloat16")


def native_dtype(cpuinfo: str) -> str | None:
    """Return the dtype that a processor has matrix instructions for; ``None`` if its flags are not known.

    float32 unless there are instructions for bfloat16, because it is more exact.

    Args:
        cpuinfo: text of Linux' ``/proc/cpuinfo``.

    >>> native_dtype("flags : fpu avx2 avx512_bf16"), native_dtype("flags : fpu avx2"), native_dtype("")
    ('bfloat16', 'float32', None)
    """
    for line in cpuinfo.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86, ARM
            return "bfloat16" if _BFLOAT16_FLAGS & set(flags.split()) else "float32"
    return None


def cpu_dtype(say: Callable[[str], None] = lambda line: None) -> str:
    """Choose the dtype of models on this machine's processor, by its instructions.

    A short timing checks the choice. If it disagrees, ``say`` gets a message and the processor's flags
    decide, because a busy machine must not change what is trained. Without known flags, the timing decides.
    """
    ratio = _bfloat16_time_ratio()
    timed = "bfloat16" if ratio < _CLEARLY_FASTER else "float32"
    native = native_dtype(_CPUINFO.read_text() if _CPUINFO.exists() else "")
    if native is None:
        return timed
    if native != timed:
        say(
            f"the processor's flags say {native}, but in a short test bfloat16 took {ratio:.2f} times "
            f"as long as float32; using {native}"
        )
    return native


@functools.cache
def _bfloat16_time_ratio() -> float:
    """Time of a matrix product in bfloat16 divided by its time in float32."""
    import torch

    fastest: list[float] = []
    for dtype in (torch.bfloat16, torch.float32):
        rows, weight = torch.ones(64, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        times: list[float] = []
        for _ in range(30):
            started = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            times.append(time.perf_counter() - started)
        fastest.append(min(times))
    return fastest[0] / fastest[1]


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Processor times at one moment, in seconds.

    Args:
        wall_s: the monotonic clock.
        busy_s: processor time of all programs, on all cores.
        stolen_s: time that the host gave to other virtual machines.
        own_s: processor time of this process and its children.
    """

    wall_s: float
    busy_s: float
    stolen_s: float
    own_s: float

    @staticmethod
    def now() -> CpuTimes | None:
        """Read the current times; ``None`` without Linux' ``/proc/stat``."""
        if not _STAT.exists():
            return None
        tick_s = 1 / os.sysconf("SC_CLK_TCK")
        first = _STAT.read_text().split("\n", 1)[0].split()
        user, nice, system, _, _, irq, softirq, stolen = (int(field) * tick_s for field in first[1:9])
        return CpuTimes(time.monotonic(), user + nice + system + irq + softirq, stolen, sum(os.times()[:4]))

    def cores_of_others(self, later: CpuTimes) -> float:
        """Cores that other programs used until ``later``, on average."""
        wall_s = max(later.wall_s - self.wall_s, 1e-3)
        return (later.busy_s - self.busy_s - (later.own_s - self.own_s)) / wall_s


def why_busy(before: CpuTimes | None, after: CpuTimes | None, spread: float, threads: int) -> str:
    """Explain why a measurement is unreliable; empty if it is reliable.

    The load average alone does not decide, because it includes this run's own work of the last minutes.

    Args:
        before, after: processor times at the start and the end of the measurement.
        spread: slowest divided by fastest of equal timings, at least 1.
        threads: compute threads; programs on the other cores disturb nothing.
    """
    reasons: list[str] = []
    if before and after and (wall_s := after.wall_s - before.wall_s) > 0:
        cores = os.cpu_count() or 1
        others = before.cores_of_others(after)
        stolen = (after.stolen_s - before.stolen_s) / (wall_s * cores)
        if others > cores - threads + _MAX_OTHERS_SHARE * cores:
            reasons.append(
                f"other programs use {others:.1f} of {cores} cores (load average {os.getloadavg()[0]:.1f})"
            )
        if stolen > _MAX_STOLEN_SHARE:
            reasons.append(f"other guests of the host take {stolen:.0%} of the processor time")
    if spread > _MAX_SPREAD:
        reasons.append(f"equal work took up to {spread:.1f} times as long")
    return ", ".join(reasons)


def peak_memory_bytes() -> int:
    """Most memory that this process has had so far (Linux' peak resident set size); 0 if unknown."""
    # Not `resource.getrusage`, whose peak includes that of the program which started this process.
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def free_threads(say: Callable[[str], None]) -> int:
    """Count the cores that other programs leave free: `usable_threads` at most, at least 1.

    PyTorch's threads wait for each other by spinning, so a thread that shares its core with another program
    holds up all others. On two cores, one of them in use, the probe of a plan took 27 s with one thread and
    more than 160 s with two.

    Args:
        say: called with a message if not all cores are free.
    """
    cores, usable = os.cpu_count() or 1, usable_threads()
    before = CpuTimes.now()
    time.sleep(_OBSERVED_S)
    after = CpuTimes.now()
    others = before.cores_of_others(after) if before and after else 0.0
    threads = min(usable, max(round(cores - others), 1))
    if threads < usable:
        say(
            f"other programs use {others:.1f} of {cores} cores, so this run computes with {threads} of "
            f"{usable} threads; begin it on a quiet machine to train more in the same time"
        )
    return threads


def usable_threads() -> int:
    """Count the cores that this process may use: its affinity's, or ``OMP_NUM_THREADS`` if that is less."""
    cores = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list has a number for each level
    return min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores


def use_threads(threads: int | None = None) -> int:
    """Set torch's thread count (default: `usable_threads`); returns it.

    Sets up the process's memory too, so it comes before any work of torch.
    """
    import torch

    count = threads or usable_threads()
    torch.set_num_threads(count)
    keep_freed_memory()
    limit_kernel_caches()
    return count
