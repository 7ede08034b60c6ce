"""Asking many variants of one function the same calls, in one sandboxed process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from envkit.errors import SandboxError
from envkit.grading import Answer, Call
from envkit.sandbox import Limits, SandboxBackend

#: Lines of Python that one call may run: some ten milliseconds.
MAX_STEPS = 20_000
_LIMITS = Limits(cpu_s=120.0, wall_s=300.0, memory_bytes=2**30, processes=8, output_bytes=2**26)
#: What a variant that ran out of something says depends on the machine, so it says nothing.
_ACCIDENTS = ("MemoryError", "Unencodable")


def batch_answers(
    backend: SandboxBackend,
    variants: Sequence[str],
    function: str,
    calls: Sequence[Call],
    modules: Sequence[str],
    hash_seed: int,
) -> list[list[Answer | None]]:
    """What each variant answers to each call, shape ``(len(variants), len(calls))``.

    The variants are trusted: originals and their mutants, never an agent's code. ``None`` stands for
    no answer: the call hung, the variant died before it, or the first variant gave no value there.

    Args:
        backend: makes the sandbox.
        variants: module texts, the original first.
        function: the function to call.
        calls: the calls.
        modules: standard-library modules that the calls name.
        hash_seed: Python's hash seed, which decides the order of sets of strings.

    Raises:
        SandboxError: the machinery failed.
    """
    job = {
        "encoder": _source("envkit.grading", "worker.py"),
        "function": function,
        "modules": list(modules),
        "hash_seed": str(hash_seed),
        "steps": MAX_STEPS,
        "cpu_s": 1.0,
        "memory_bytes": _LIMITS.memory_bytes // 2,
        "calls": [call.to_json() for call in calls],
        "variants": list(variants),
    }
    program = _source("envkit.mining", "batch_worker.py")
    with backend.create() as sandbox:
        argv = [sandbox.python, "-I", "-S", "-c", program]
        result = sandbox.run(argv, stdin=json.dumps(job).encode(), limits=_LIMITS)
    lines = result.stdout.splitlines()
    if not result.ok or len(lines) != len(variants):
        last = (result.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise SandboxError(f"mining {function}: the batch ended by {result.stop} and said {last[:200]}")
    return [_row(json.loads(line), len(calls)) for line in lines]


def _row(said: list[dict[str, Any] | None], length: int) -> list[Answer | None]:
    return [_answer(one) for one in said] + [None] * (length - len(said))


def _answer(said: dict[str, Any] | None) -> Answer | None:
    if said is None or "hang" in said or said.get("raises") in _ACCIDENTS:
        return None
    return Answer(said.get("value"), said.get("after"), said.get("raises"))


def _source(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text()
