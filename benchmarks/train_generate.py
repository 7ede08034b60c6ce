"""Sampling 32 answers to one prompt with envkit, transformers' ``generate`` (as TRL does), and vLLM."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Final

import tiny
import torch
from side_by_side import Paused, Ways
from train_shared import GROUP, NEW, dtype, expect, perturbed_policy, timed_model

from envkit.engine.adapters.updates import updates_of
from envkit.engine.protocol import Request, Sampling
from envkit.engine.torch_engine import TorchEngine

ROWS: Final = 32
WAVES: Final = (64, 128, 256)
VLLM_PYTHON: Final = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"


class VLLM:
    """vLLM in a separate environment; see `vllm_side.py`. Ends when closed or with this process.

    It is paused except within `resumed`, because its processes poll for work and would slow down others.
    """

    def __init__(self, model: Path, threads: int) -> None:
        side = Path(__file__).with_name("vllm_side.py")
        # The allocator that vLLM's documentation recommends, if it is installed.
        preloaded = glob.glob("/usr/lib/*/libtcmalloc_minimal.so.4")[:1]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            # By default vLLM keeps one core free and so has fewer threads than the others.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "LD_PRELOAD": ":".join(preloaded),
        }
        self._child = subprocess.Popen(
            [VLLM_PYTHON, side, model, dtype()],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a new process group, so that its child processes can be ended with it
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def ask(self, prompt: Sequence[int], rows: int, new: int) -> int:
        """Sample ``new`` tokens for each row and return the number of tokens."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"prompt": prompt, "rows": rows, "new": new}) + "\n")
        self._child.stdin.flush()
        return int(self._answer()["tokens"])

    @contextlib.contextmanager
    def resumed(self) -> Generator[None]:
        """Run its processes within this context, after a warm-up request."""
        self._signal(signal.SIGCONT)
        try:
            self.ask([*range(100, 120)], ROWS, 8)
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it and its child processes."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
            self._child.communicate(timeout=10)
        self._signal(signal.SIGKILL)
        self._child.wait()

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to it and its child processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        if not (line := self._child.stdout.readline()):
            raise SystemExit(f"{VLLM_PYTHON} ended with status {self._child.wait()}; try it by hand")
        return json.loads(line)


@contextlib.contextmanager
def generate_ways(length: int) -> Generator[Ways]:
    """Sample answers to a prompt of ``length`` tokens without an adapter."""
    ref = timed_model()
    with contextlib.ExitStack() as stack:
        # First, because it needs extra memory while it starts.
        vllm: VLLM | None = None
        if VLLM_PYTHON.exists():
            vllm = stack.enter_context(contextlib.closing(VLLM(ref.path, torch.get_num_threads())))
        engine, plain = TorchEngine(tiny.plain(ref, dtype()), []), tiny.plain(ref, dtype())
        prompt = tiny.prompt(length, seed=length)
        requests = [Request(prompt, (0, row)) for row in range(ROWS)]
        ids = torch.tensor(prompt).repeat(ROWS, 1)
        from transformers import GenerationConfig

        settings = GenerationConfig(
            max_new_tokens=NEW, do_sample=True, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=0
        )

        def ours() -> None:
            drawn = engine.generate(requests, Sampling(1.0, NEW))
            expect(sum(len(each.ids) for each in drawn), ROWS * NEW)

        def theirs() -> None:
            with torch.no_grad():
                found = plain.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
                )
            expect(found[:, length:].numel(), ROWS * NEW)

        def vllms() -> None:
            assert vllm is not None
            expect(vllm.ask(prompt, ROWS, NEW), ROWS * NEW)

        yield {"envkit": ours, "TRL": theirs} | (
            {} if vllm is None else {"vLLM": Paused(vllms, vllm.resumed)}
        )


@contextlib.contextmanager
def wave_ways() -> Generator[Ways]:
    """Sample the answers of a step with an adapter, in waves of different numbers of rows."""
    policy = perturbed_policy()
    adapter = updates_of(policy.model, "default")
    engines = {f"{rows} rows": TorchEngine(tiny.plain(policy.ref, dtype()), [], rows) for rows in WAVES}
    requests = [
        Request(tiny.prompt(150, seed=group), (group, row))
        for group in range(WAVES[-1] // GROUP)
        for row in range(GROUP)
    ]

    def sampling(engine: TorchEngine) -> Callable[[], None]:
        engine.load([adapter])

        def measure() -> None:
            drawn = engine.generate(requests, Sampling(1.0, NEW))
            expect(sum(len(each.ids) for each in drawn), len(requests) * NEW)

        return measure

    yield {way: sampling(engine) for way, engine in engines.items()}


@contextlib.contextmanager
def engine_start_ways() -> Generator[Ways]:
    """Start a new process up to its first token."""
    program = (
        "from envkit.engine.protocol import Request, Sampling\n"
        "from envkit.models import resolve\n"
        "from envkit.training.policy import Policy\n"
        f"policy = Policy(resolve({timed_model().id!r}), dtype={dtype()!r})\n"
        "policy.engine.generate([Request((1, 2, 3), (0,))], Sampling(1.0, 1))\n"
    )
    yield {"envkit": lambda: subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)}
