"""Who poses a task and judges what was made of it: one kind for each way of telling right from wrong."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

from envkit.environments.code_editor.app import CodeEditor
from envkit.environments.code_editor.shared import Shared
from envkit.grading import GRADING_LIMITS, Answer, Grade, Leniency, NumericPolicy, Program, canonical, grade
from envkit.inputs.call import Call
from envkit.sandbox import SandboxBackend
from envkit.types import Task, Verdict

#: Half of what a candidate may use, so that a slower but right one is not cut off.
REFERENCE_LIMITS = dataclasses.replace(GRADING_LIMITS, cpu_s=GRADING_LIMITS.cpu_s / 2)
#: Expected answers, by visit.
EXPECTED = Shared(256)


class Judge(Protocol):
    """Knows all of one task, also what is hidden; so nothing of it but what it says here leaves the host."""

    #: The one file that the agent may change.
    path: str
    #: Why its grades prove less than the split oracle's; empty where they do not.
    weakness: str
    #: Why the attack corpus cannot be aimed at the task; empty where it can.
    spared: str

    def editor(self) -> CodeEditor:
        """An editor for the task's workspace."""
        ...

    def beside(self) -> Mapping[str, bytes]:
        """Files beside ``path``, which must come back as they were."""
        ...

    def answer(self) -> str:
        """The action that solves the task."""
        ...

    def visit(self, count: int, seed: int) -> Hashable:
        """What is equal where equal files get equal grades."""
        ...

    def grade(self, source: bytes, backend: SandboxBackend, count: int, seed: int) -> Grade:
        """Grade the changed file, in sandboxes that no agent has entered.

        Args:
            source: the file.
            backend: makes them.
            count: inputs to draw, where any are drawn.
            seed: of the draws.

        Raises:
            SandboxError: the machinery failed; a verdict of ``INFRA`` says so as well.
        """
        ...


def hidden_digest(task: Task) -> bytes:
    """Ids are unique within one task file; another file may give one another meaning."""
    return hashlib.sha256(canonical(task.hidden).encode()).digest()


def compare(
    backend: SandboxBackend,
    subject: Program,
    calls: Sequence[Call],
    expected: Sequence[Answer],
    policies: Mapping[NumericPolicy, Sequence[int]],
    leniency: Leniency,
) -> Grade:
    """Grade by calls, where numbers may count as equal by other rules in some of them.

    Args:
        policies: rules -> the calls, by index, that they hold for; nearly always one.
        backend, subject, calls, expected, leniency: see `envkit.grading.grade`.
    """
    grades: list[Grade] = []
    for policy, part in policies.items():
        asked, wanted = [calls[index] for index in part], [expected[index] for index in part]
        found = grade(backend, subject, asked, wanted, policy, leniency=leniency)
        if found.verdict is not Verdict.PASS:
            return found
        grades.append(found)
    said = "; ".join(found.evidence for found in grades)
    weakness = "; ".join({found.weakness: None for found in grades if found.weakness})
    passed, total = sum(found.passed for found in grades), sum(found.total for found in grades)
    return Grade(Verdict.PASS, said, passed, total, weakness)
