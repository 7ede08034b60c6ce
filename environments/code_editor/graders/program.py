"""Grade by a test program that runs without its expected values. `formats.asserts` prepares it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import cast, final

from envkit.env.grade import Grade
from envkit.env.taskfile import digest
from envkit.environments.code_editor.actions import replace_text_message
from envkit.environments.code_editor.editor import CodeEditor
from envkit.environments.code_editor.graders import probe
from envkit.environments.code_editor.graders.base import EXPECTED_ANSWERS, original_answers
from envkit.environments.code_editor.graders.oracle import Answer, Program, Questions, grade
from envkit.environments.code_editor.hidden import ProgramHidden, solution_of
from envkit.environments.code_editor.mining.build import SOLUTION
from envkit.sandbox import SandboxBackend, guest_source
from envkit.types import JSON, Task

_PROBE = "probe.py"


@final
class ProgramGrader:
    """Grades by a test program; implements `envkit.environments.code_editor.graders.base.Grader`."""

    path = SOLUTION
    no_attack_reason = "it attacks by a function, and the task asks for a program"

    def __init__(self, task: Task, hidden: ProgramHidden) -> None:
        self._task, self._hidden = task, hidden
        self._key = digest([task])
        self.weakness = hidden.weakness

    def editor(self, backend: SandboxBackend) -> CodeEditor:
        return CodeEditor(SOLUTION, whole=True)

    def read_only_files(self) -> Mapping[str, bytes]:
        return {}

    def oracle_action(self) -> str:
        return replace_text_message(solution_of(self._task), self._hidden.reference)

    def cache_key(self, count: int, seed: int) -> Hashable:
        """Return a key that does not depend on the seed, because no input is drawn."""
        return self._key

    def grade(self, source: bytes, backend: SandboxBackend, count: int, seed: int) -> Grade:
        hidden = self._hidden
        expected = EXPECTED_ANSWERS.get(self.cache_key(count, seed), lambda: self._expected(backend))
        questions = Questions(hidden.killers, expected, [look.numbers for look in hidden.looks])
        return grade(backend, self._program(source), questions, leniency=hidden.leniency)

    def _expected(self, backend: SandboxBackend) -> Sequence[Answer]:
        """Return the expected values of each probe: one for each time that the original reaches it.

        If the original raises or dies, no candidate can match it, so the check of the task fails.

        Raises:
            SandboxError: see `original_answers`.
        """
        reference = self._program(self._hidden.reference.encode())
        seen = original_answers(self._task, backend, reference, self._hidden.killers)
        found: list[Answer] = []
        for place, expected in enumerate(self._hidden.looks):
            values = seen[place].value if place < len(seen) else None
            times = len(values) if isinstance(values, list) else 1
            found.append(Answer(value=[cast("JSON", expected.value)] * times))
        return found

    def _program(self, source: bytes) -> Program:
        """The edited program with the test program, which holds no expected values."""
        worker = guest_source("envkit.environments.code_editor.graders", _PROBE).encode()
        files = {probe.PROGRAM: source, probe.TESTS: self._hidden.tests.encode(), _PROBE: worker}
        return Program(files, _PROBE, probe.probe.__name__)
