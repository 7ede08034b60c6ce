"""The grader protocol, and what graders share."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

from envkit.env.grade import Grade
from envkit.environments.code_editor.editor import CodeEditor
from envkit.environments.code_editor.graders.oracle import GRADING_LIMITS, Answer, Program, answers_and_end
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.result_cache import ResultCache
from envkit.errors import SandboxError
from envkit.sandbox import SandboxBackend
from envkit.types import Task

#: Limits of the original: half of a candidate's time, so that a correct but slower candidate is not stopped;
#: less output by what other answers in the same message may take.
REFERENCE_LIMITS = dataclasses.replace(
    GRADING_LIMITS, cpu_s=GRADING_LIMITS.cpu_s / 2, output_bytes=GRADING_LIMITS.output_bytes - 2**17
)
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

    def editor(self, backend: SandboxBackend) -> CodeEditor:
        """Return an editor for the task's workspace, which runs examples in sandboxes of this backend."""
        ...

    def read_only_files(self) -> Mapping[str, bytes]:
        """Return the other files of the workspace; the agent must not change them."""
        ...

    def oracle_action(self) -> str:
        """Return the action that solves the task."""
        ...

    def cache_key(self, count: int, seed: int) -> Hashable:
        """Return a cache key. With equal keys, equal files get equal grades.

        It covers the whole task, because two task files may use one id for different tasks.
        """
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


def original_answers(
    task: Task, backend: SandboxBackend, program: Program, calls: Sequence[Call]
) -> list[Answer]:
    """Return the answers of a task's original, up to the calls that end it.

    Raises:
        SandboxError: the machinery failed, or wall time ended the original, as on a stalled machine.
    """
    found, gone = answers_and_end(backend, program, calls, REFERENCE_LIMITS)
    if gone is not None and gone.timed_out:
        raise SandboxError(f"the original of task {task.id} took too long: {gone.reason}")
    return found
