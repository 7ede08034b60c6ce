"""Shared parts of `serve.py`: the model, random adapters, and server processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Final, final

import httpx2
import torch

from envkit.engine.adapters.updates import Update
from envkit.models import DEFAULT_MODEL, ModelRef, resolve
from envkit.training.learner.base_model import linear_shapes

ROUNDS: Final = max(int(os.environ.get("ROUNDS", "3")), 1)
_START_S = 900  # vLLM compiles when it starts


def served_model() -> ModelRef:
    """Return the model that is measured: ``MODEL``, or the default."""
    return resolve(os.environ.get("MODEL") or DEFAULT_MODEL)


def shapes_of(ref: ModelRef) -> dict[str, tuple[int, int]]:
    """Return `linear_shapes` of a model that is not loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return linear_shapes(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ref.path)))


def save_adapter(folder: Path, adapter: Mapping[str, Update]) -> None:
    """Write an adapter as PEFT does, in float32."""
    from safetensors.torch import save_file

    rank = next(iter(adapter.values())).down.shape[0]
    folder.mkdir(parents=True)
    tensors = {
        f"base_model.model.{path}.lora_{letter}.weight": matrix.contiguous()
        for path, update in adapter.items()
        for letter, matrix in (("A", update.down), ("B", update.up))
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({path.rpartition(".")[2] for path in adapter})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@final
class ServerProcess:
    """A server in a process group of its own.

    Args:
        process: its process.
        url: with its port, without a path.
        model: id to ask for.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str, model: str) -> None:
        self._process, self.url, self.model = process, url, model

    @property
    def peak_mb(self) -> float:
        """Largest memory of the process so far, in MB of 2**20 bytes: shared and mapped pages included."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024

    @contextlib.contextmanager
    def paused(self) -> Generator[None]:
        """Stop all its processes, so that they take no time from others."""
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], environment: Mapping[str, str], url: str, model: str, log: Path
) -> Generator[ServerProcess]:
    """Run a server until the block ends. Yields when it answers ``/health``.

    Raises:
        SystemExit: it does not start.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(process, url, log)
            yield ServerProcess(process, url, model)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def envkit_server(
    ref: ModelRef, port: int, log: Path, *options: str | Path
) -> contextlib.AbstractContextManager[ServerProcess]:
    """Run ``envkit serve`` in bfloat16."""
    command = [sys.executable, "-m", "envkit.cli", "serve", "--model", ref.path, "--name", "base"]
    command += ["--port", str(port), "--dtype", "bfloat16", *options]
    return running([*map(str, command)], {}, f"http://127.0.0.1:{port}", "base", log)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(url + "/health").status_code == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"{process.args} did not start:\n{log.read_text(errors='replace')[-2000:]}")
