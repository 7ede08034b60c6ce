"""Grade by calls: the repaired function must answer hidden calls as the original does."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from envkit.environments.code_editor import docstrings
from envkit.environments.code_editor.actions import replace_text_message
from envkit.environments.code_editor.editor import CodeEditor
from envkit.environments.code_editor.graders.base import (
    EXPECTED_ANSWERS,
    REFERENCE_LIMITS,
    hidden_digest,
)
from envkit.environments.code_editor.hidden import ProblemHidden
from envkit.environments.code_editor.prompt import CHECK, check_script
from envkit.environments.code_editor.syntax import definitions
from envkit.errors import BrokenTask
from envkit.grading import EXACT, Answer, Grade, Program, answerable, grade
from envkit.inputs.call import Call
from envkit.inputs.generate import generated_calls
from envkit.inputs.perturb import perturbed_calls
from envkit.mining.build import SOLUTION
from envkit.mining.hidden import RepairHidden
from envkit.sandbox import SandboxBackend
from envkit.types import Task, Verdict


@dataclass(frozen=True, slots=True)
class _Asked:
    """Calls with the original's answers."""

    calls: Sequence[Call]
    expected: Sequence[Answer]


@final
class CallGrader:
    """Grades by calls; implements `envkit.environments.code_editor.graders.base.Grader`."""

    path = SOLUTION
    weakness = ""

    def __init__(self, task: Task, hidden: RepairHidden | ProblemHidden) -> None:
        self._task, self._hidden = task, hidden
        is_method = "." in hidden.function
        self.no_attack_reason = (
            "it attacks by a function, and the task asks for a method" if is_method else ""
        )

    def editor(self) -> CodeEditor:
        # A benchmark's file is shown whole, because its bug may be outside the function.
        focus = None if isinstance(self._hidden, ProblemHidden) else self._hidden.function
        return CodeEditor(SOLUTION, focus=focus, check=CHECK)

    def read_only_files(self) -> Mapping[str, bytes]:
        return {CHECK: check_script(self._task, self._hidden.modules).encode()}

    def oracle_action(self) -> str:
        """Return the whole original function.

        Chosen on pilots with the 135M model: it repairs while it copies, and rarely if it must name the wrong
        line first, as in a diff.
        """
        source = self._hidden.reference
        if isinstance(self._hidden, ProblemHidden):
            return replace_text_message(self._task.files[SOLUTION], source)
        [found] = [item for item in definitions(source) if item.name == self._hidden.function]
        code, _ = docstrings.split(found.lines(source))
        return f"```python\n{code}\n```"

    def cache_key(self, count: int, seed: int) -> Hashable:
        return self._task.id, hidden_digest(self._task), count, seed

    def grade(self, source: bytes, backend: SandboxBackend, count: int, seed: int) -> Grade:
        """Grade by the stored calls and some drawn ones. Other drawn ones must confirm a PASS."""
        key = self.cache_key(count, seed)
        asked = EXPECTED_ANSWERS.get(key, lambda: self._expected(self.hidden_calls(seed, count), backend))
        if not asked.calls:
            raise BrokenTask(f"task {self._task.id}: the original answers none of its hidden calls")
        first = self._compare(source, backend, asked)
        if first.verdict is not Verdict.PASS:
            return first
        fresh = EXPECTED_ANSWERS.get(
            (key, "confirming"), lambda: self._expected(self.confirming_calls(seed, count), backend)
        )
        if not fresh.calls:  # no further call can be drawn
            return first
        second = self._compare(source, backend, fresh)
        evidence = second.evidence
        if second.verdict is not Verdict.PASS:
            evidence = f"{first.total} calls answered as expected, but others do not confirm it: {evidence}"
        return Grade(second.verdict, evidence, first.passed + second.passed, first.total + second.total)

    def _compare(self, source: bytes, backend: SandboxBackend, asked: _Asked) -> Grade:
        leniency = self._hidden.leniency if isinstance(self._hidden, ProblemHidden) else EXACT
        program = self._program(source)
        return grade(backend, program, asked.calls, asked.expected, self._hidden.policy, leniency=leniency)

    def hidden_calls(self, seed: int, count: int) -> list[Call]:
        """Return the stored calls that expose the bug, drawn calls, and the examples."""
        hidden = self._hidden
        drawn = self._draw(seed, count)
        return [*hidden.killers, *drawn, *(call for call in hidden.examples if call not in hidden.killers)]

    def confirming_calls(self, seed: int, count: int) -> list[Call]:
        """Return drawn calls of which none is among `hidden_calls`."""
        known = {call.source("") for call in self.hidden_calls(seed, count)}
        other_seed = int.from_bytes(hashlib.sha256(f"confirm {seed}".encode()).digest()[:8])
        return [call for call in self._draw(other_seed, count) if call.source("") not in known]

    def _draw(self, seed: int, count: int) -> list[Call]:
        hidden = self._hidden
        if isinstance(hidden, ProblemHidden):
            return generated_calls(hidden.examples, seed, hidden.fresh, self._task.prompt, hidden.parameters)
        return perturbed_calls(hidden.examples, seed=seed, count=count)

    def _expected(self, calls: Sequence[Call], backend: SandboxBackend) -> _Asked:
        """Ask the original, in a sandbox that no candidate ever uses.

        Calls that the original rejects, or whose answers cannot be compared, are dropped.
        """
        reference = self._program(self._hidden.reference.encode())
        return _Asked(*answerable(backend, reference, calls, REFERENCE_LIMITS))

    def _program(self, source: bytes) -> Program:
        return Program({SOLUTION: source}, SOLUTION, self._hidden.function, self._hidden.modules)
