"""Grade by calls: the repaired function must answer hidden calls as the original does."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import final

from envkit.environments.code_editor import docstrings
from envkit.environments.code_editor.actions import replace_text_message
from envkit.environments.code_editor.editor import CodeEditor
from envkit.environments.code_editor.graders.base import (
    EXPECTED_ANSWERS,
    REFERENCE_LIMITS,
    grade_calls,
    hidden_digest,
)
from envkit.environments.code_editor.hidden import ProblemHidden
from envkit.environments.code_editor.prompt import CHECK, check_script
from envkit.environments.code_editor.syntax import definitions
from envkit.errors import BrokenTask
from envkit.grading import EXACT, Answer, Grade, Program, answerable
from envkit.inputs.call import Call
from envkit.inputs.generate import generated_calls
from envkit.inputs.perturb import perturbed_calls
from envkit.mining.build import SOLUTION
from envkit.mining.hidden import RepairHidden
from envkit.sandbox import SandboxBackend
from envkit.types import Task


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
        calls, expected = EXPECTED_ANSWERS.get(
            self.cache_key(count, seed), lambda: self._expected(self.hidden_calls(seed, count), backend)
        )
        leniency = self._hidden.leniency if isinstance(self._hidden, ProblemHidden) else EXACT
        policies = {self._hidden.policy: range(len(calls))}
        return grade_calls(backend, self._program(source), calls, expected, policies, leniency)

    def hidden_calls(self, seed: int, count: int) -> list[Call]:
        """Return the calls that grade a visit. Those that expose the bug come first: they fail soonest."""
        hidden = self._hidden
        if isinstance(hidden, ProblemHidden):
            drawn = generated_calls(hidden.examples, seed, hidden.fresh, self._task.prompt, hidden.parameters)
        else:
            drawn = perturbed_calls(hidden.examples, seed=seed, count=count)
        return [*hidden.killers, *drawn, *(call for call in hidden.examples if call not in hidden.killers)]

    def _expected(
        self, calls: Sequence[Call], backend: SandboxBackend
    ) -> tuple[Sequence[Call], Sequence[Answer]]:
        """Compute the original's answers in a sandbox that no candidate ever uses."""
        reference = self._program(self._hidden.reference.encode())
        # Calls that the original rejects, or whose answers cannot be compared, are dropped.
        asked, answered = answerable(backend, reference, calls, REFERENCE_LIMITS)
        if not asked:
            raise BrokenTask(f"task {self._task.id}: the original answers none of {len(calls)} calls")
        return asked, answered

    def _program(self, source: bytes) -> Program:
        return Program({SOLUTION: source}, SOLUTION, self._hidden.function, self._hidden.modules)
