"""Judging by calls: the repaired function must answer hidden ones as the original does."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast, final

from envkit.environments.code_editor import docstrings
from envkit.environments.code_editor.actions import replace_text_message
from envkit.environments.code_editor.editor import CodeEditor
from envkit.environments.code_editor.graders.base import (
    EXPECTED_ANSWERS,
    REFERENCE_LIMITS,
    grade_calls,
    hidden_digest,
)
from envkit.environments.code_editor.prompt import CHECK, check_script
from envkit.environments.code_editor.syntax import definitions
from envkit.errors import BrokenTask
from envkit.grading import Answer, Grade, Leniency, NumericPolicy, Program, answerable
from envkit.inputs.call import Call
from envkit.inputs.generate import generated_calls
from envkit.inputs.perturb import perturbed_calls
from envkit.mining.build import SOLUTION
from envkit.sandbox import SandboxBackend
from envkit.types import JSON, Task


@final
class CallGrader:
    """Implements `envkit.environments.code_editor.graders.base.Grader`."""

    path = SOLUTION
    weakness = ""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._function = str(task.hidden["function"])
        method = "it attacks by a function, and the task asks for a method"
        self.no_attack_reason = method if "." in self._function else ""

    def editor(self) -> CodeEditor:
        # A file that was written whole is shown whole: its bug may be outside the function that is asked.
        return CodeEditor(SOLUTION, focus=None if _is_stated(self._task) else self._function, check=CHECK)

    def read_only_files(self) -> Mapping[str, bytes]:
        return {CHECK: check_script(self._task).encode()}

    def oracle_action(self) -> str:
        """The original function, whole.

        Chosen on pilots with the 135M model: it repairs while it copies, and seldom when it must first
        name the wrong line, as in a diff.
        """
        source = str(self._task.hidden["reference"])
        if _is_stated(self._task):
            return replace_text_message(self._task.files[SOLUTION], source)
        [found] = [item for item in definitions(source) if item.name == self._function]
        code, _ = docstrings.split(found.lines(source))
        return f"```python\n{code}\n```"

    def cache_key(self, count: int, seed: int) -> Hashable:
        return self._task.id, hidden_digest(self._task), count, seed

    def grade(self, source: bytes, backend: SandboxBackend, count: int, seed: int) -> Grade:
        hidden = self._task.hidden
        calls, expected = EXPECTED_ANSWERS.get(
            self.cache_key(count, seed),
            lambda: self._expected(hidden_calls(self._task, seed, count), backend),
        )
        policy = NumericPolicy(**cast("dict[str, Any]", hidden.get("policy", {})))
        leniency = Leniency(**cast("dict[str, Any]", hidden.get("leniency", {})))
        subject, every = self._subject(source), range(len(calls))
        return grade_calls(backend, subject, calls, expected, {policy: every}, leniency)

    def _expected(
        self, calls: Sequence[Call], backend: SandboxBackend
    ) -> tuple[Sequence[Call], Sequence[Answer]]:
        """The original's answers, computed in a sandbox that no candidate ever enters."""
        reference = self._subject(str(self._task.hidden["reference"]).encode())
        # Inputs that the original rejects, or answers with what cannot be compared, say nothing.
        asked, answered = answerable(backend, reference, calls, REFERENCE_LIMITS)
        if not asked:
            raise BrokenTask(f"task {self._task.id}: the original answers none of {len(calls)} calls")
        return asked, answered

    def _subject(self, source: bytes) -> Program:
        modules = tuple(cast("Sequence[str]", self._task.hidden["modules"]))
        return Program({SOLUTION: source}, SOLUTION, self._function, modules)


def hidden_calls(task: Task, seed: int, count: int) -> list[Call]:
    """The calls that a visit is graded on: pinned ones first, since they fail fastest."""
    pinned = [Call.from_plain(item) for item in cast("Sequence[JSON]", task.hidden["killers"])]
    examples = [Call.from_plain(item) for item in cast("Sequence[JSON]", task.hidden["examples"])]
    if _is_stated(task):
        names = cast("Sequence[str]", task.hidden["parameters"])
        fresh = generated_calls(examples, seed, cast("int", task.hidden["fresh"]), task.prompt, names)
    else:
        fresh = perturbed_calls(examples, seed=seed, count=count)
    return [*pinned, *fresh, *(call for call in examples if call not in pinned)]


def _is_stated(task: Task) -> bool:
    """Whether others have stated the problem, as the readers of `formats` tell."""
    return "parameters" in task.hidden
