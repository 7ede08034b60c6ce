"""Make the same calls to many variants of functions, in one sandboxed process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from envkit.environments.code_editor.graders.oracle import Answer
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.inputs.doctests import modules_of
from envkit.errors import SandboxError
from envkit.sandbox import PYTHON_OPTIONS, Limits, SandboxBackend, guest_source

#: Lines of Python that one call may run: some ten milliseconds.
MAX_STEPS = 20_000
_LIMITS = Limits(cpu_s=600.0, wall_s=3600.0, memory_bytes=2**30, processes=8, output_bytes=2**28)
#: Exceptions that depend on the machine's limits; such an answer counts as none.
_ACCIDENTS = ("MemoryError", "Unencodable")


@dataclass(frozen=True, slots=True)
class VariantBatch:
    """Variants of one function and the calls to make to each.

    Variants are trusted code: originals and their mutants, never an agent's code.

    Args:
        function: the function to call; ``Class.method`` for a method of a new instance.
        variants: module texts, the original first.
        calls: the calls.
        all_calls: make all calls to every variant, even those that the first one does not answer.
    """

    function: str
    variants: Sequence[str]
    calls: Sequence[Call]
    all_calls: bool = False


def variant_answers(
    backend: SandboxBackend, batches: Sequence[VariantBatch], hash_seed: int
) -> list[list[list[Answer | None]]]:
    """Run all batches and return the answers: ``answers[batch][variant][call]``.

    ``None`` means no answer: the call hung, the variant died before it, or the batch's first variant gave no
    value for it (unless ``all_calls``).

    Args:
        backend: makes the sandbox.
        batches: variants and calls.
        hash_seed: Python's hash seed, which decides the order of sets of strings.

    Raises:
        SandboxError: the machinery failed.
    """
    job = {
        "encoder": guest_source("envkit.sandbox.programs", "worker.py"),
        "reader": guest_source("envkit.sandbox.programs", "child_output.py"),
        "hash_seed": str(hash_seed),
        "steps": MAX_STEPS,
        "cpu_s": 1.0,
        "memory_bytes": _LIMITS.memory_bytes // 2,
        "batches": [_described(batch) for batch in batches],
    }
    program = guest_source("envkit.environments.code_editor.mining.mutations", "run_variants_worker.py")
    with backend.create() as sandbox:
        argv = [sandbox.python, *PYTHON_OPTIONS, "-c", program]
        result = sandbox.run(argv, stdin=json.dumps(job).encode(), limits=_LIMITS)
    lines = result.stdout.splitlines()
    if not result.ok or len(lines) != sum(len(batch.variants) for batch in batches):
        last = (result.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
        names = ", ".join(batch.function for batch in batches)
        raise SandboxError(f"mining {names}: ended by {result.stop}; last line: {last[:200]}")
    rest = iter(lines)
    return [[_row(json.loads(next(rest)), len(batch.calls)) for _ in batch.variants] for batch in batches]


def _described(batch: VariantBatch) -> dict[str, Any]:
    return {
        "function": batch.function,
        "modules": modules_of(batch.calls),
        "calls": [call.to_plain() for call in batch.calls],
        "variants": list(batch.variants),
        "all_calls": batch.all_calls,
    }


def _row(answers: Sequence[dict[str, Any] | None], length: int) -> list[Answer | None]:
    return [*map(_answer, answers), *[None] * (length - len(answers))]


def _answer(answers: dict[str, Any] | None) -> Answer | None:
    if answers is None or "hang" in answers or answers.get("raises") in _ACCIDENTS:
        return None
    return Answer(answers.get("value"), answers.get("after"), answers.get("raises"))
