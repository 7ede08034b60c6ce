"""The grader protocol, and functions that graders share."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

from envkit.environments.code_editor.editor import CodeEditor
from envkit.environments.code_editor.result_cache import ResultCache
from envkit.grading import (
    GRADING_LIMITS,
    Answer,
    Grade,
    Leniency,
    NumericPolicy,
    Program,
    canonical,
    grade,
)
from envkit.inputs.call import Call
from envkit.sandbox import SandboxBackend
from envkit.types import Task, Verdict

#: Limits of the original: half of a candidate's, so that a correct but slower candidate is not stopped.
REFERENCE_LIMITS = dataclasses.replace(GRADING_LIMITS, cpu_s=GRADING_LIMITS.cpu_s / 2)
#: Expected answers, by `Grader.cache_key`.
EXPECTED_ANSWERS = ResultCache(256)


class Grader(Protocol):
    """Grades one task. It knows the hidden fields, so it stays on the host."""

    #: The only file that the agent may change.
    path: str
    #: Reason why its grades prove less than hidden calls; empty for hidden calls.
    weakness: str
    #: Reason why the attack corpus does not apply to the task; empty if it does.
    no_attack_reason: str

    def editor(self) -> CodeEditor:
        """Return an editor for the task's workspace."""
        ...

    def read_only_files(self) -> Mapping[str, bytes]:
        """Return the other files of the workspace; the agent must not change them."""
        ...

    def oracle_action(self) -> str:
        """Return the action that solves the task."""
        ...

    def cache_key(self, count: int, seed: int) -> Hashable:
        """Return a cache key. With equal keys, equal files get equal grades."""
        ...

    def grade(self, source: bytes, backend: SandboxBackend, count: int, seed: int) -> Grade:
        """Grade the changed file, in fresh sandboxes that no agent has used.

        Args:
            source: the file.
            backend: makes the sandboxes.
            count: number of inputs to draw, if the grader draws any.
            seed: seed of the draws.

        Raises:
            SandboxError: the machinery failed. The verdict ``INFRA`` means the same.
        """
        ...


def hidden_digest(task: Task) -> bytes:
    """Hash a task's hidden fields, because two task files may use one id for different tasks."""
    return hashlib.sha256(canonical(task.hidden).encode()).digest()


def grade_calls(
    backend: SandboxBackend,
    subject: Program,
    calls: Sequence[Call],
    expected: Sequence[Answer],
    policies: Mapping[NumericPolicy, Sequence[int]],
    leniency: Leniency,
) -> Grade:
    """Grade by calls that may have different numeric policies.

    Args:
        policies: policy -> indices of its calls; nearly always a single one.
        backend, subject, calls, expected, leniency: see `envkit.grading.grade`.
    """
    grades: list[Grade] = []
    for policy, part in policies.items():
        asked, wanted = [calls[index] for index in part], [expected[index] for index in part]
        found = grade(backend, subject, asked, wanted, policy, leniency=leniency)
        if found.verdict is not Verdict.PASS:
            return found
        grades.append(found)
    evidence = "; ".join(found.evidence for found in grades)
    weakness = "; ".join({found.weakness: None for found in grades if found.weakness})
    passed, total = sum(found.passed for found in grades), sum(found.total for found in grades)
    return Grade(Verdict.PASS, evidence, passed, total, weakness)
