"""Judging by a test program, which runs without what it should see; `formats.asserts` reads such programs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from importlib import resources
from typing import Any, cast, final

from envkit.environments.code_editor.actions import replace_text_message
from envkit.environments.code_editor.editor import CodeEditor
from envkit.environments.code_editor.graders import probe
from envkit.environments.code_editor.graders.base import (
    EXPECTED_ANSWERS,
    REFERENCE_LIMITS,
    grade_calls,
    hidden_digest,
)
from envkit.environments.code_editor.prompt import CHECK, check_script
from envkit.grading import Answer, Grade, Leniency, NumericPolicy, Program, answers
from envkit.inputs.call import Call
from envkit.mining.build import SOLUTION
from envkit.sandbox import SandboxBackend
from envkit.types import JSON, Task

_PROBE = "probe.py"


@final
class ProgramGrader:
    """Implements `envkit.environments.code_editor.graders.base.Grader`."""

    path = SOLUTION
    no_attack_reason = "it attacks by a function, and the task asks for a program"

    def __init__(self, task: Task) -> None:
        self._task = task
        self._looks = cast("Sequence[Mapping[str, JSON]]", task.hidden["looks"])
        self.weakness = str(task.hidden["weakness"])

    def editor(self) -> CodeEditor:
        return CodeEditor(SOLUTION, check=CHECK, whole=True)

    def read_only_files(self) -> Mapping[str, bytes]:
        return {CHECK: check_script(self._task).encode()}

    def oracle_action(self) -> str:
        return replace_text_message(self._task.files[SOLUTION], str(self._task.hidden["reference"]))

    def cache_key(self, count: int, seed: int) -> Hashable:
        """Nothing is drawn."""
        return self._task.id, hidden_digest(self._task)

    def grade(self, source: bytes, backend: SandboxBackend, count: int, seed: int) -> Grade:
        hidden = self._task.hidden
        calls = [Call.from_plain(item) for item in cast("Sequence[JSON]", hidden["killers"])]
        expected = EXPECTED_ANSWERS.get(self.cache_key(count, seed), lambda: self._expected(calls, backend))
        leniency = Leniency(**cast("dict[str, Any]", hidden["leniency"]))
        return grade_calls(backend, self._subject(source), calls, expected, self._policies(), leniency)

    def _expected(self, calls: Sequence[Call], backend: SandboxBackend) -> Sequence[Answer]:
        """What each place should see: its value, as often as the original came by.

        Where the original raised, or died, nothing gives what is expected, the original included; so it fails
        as it should.
        """
        reference = self._subject(str(self._task.hidden["reference"]).encode())
        seen = answers(backend, reference, calls, REFERENCE_LIMITS)
        found: list[Answer] = []
        for place, one in enumerate(self._looks):
            values = seen[place].value if place < len(seen) else None
            times = len(values) if isinstance(values, list) else 1
            found.append(Answer(value=[one["value"]] * times))
        return found

    def _policies(self) -> Mapping[NumericPolicy, Sequence[int]]:
        """When two numbers are equal -> the places where it holds."""
        found: dict[NumericPolicy, list[int]] = {}
        for place, one in enumerate(self._looks):
            policy = NumericPolicy(**cast("dict[str, Any]", one["numbers"]))
            found.setdefault(policy, []).append(place)
        return found

    def _subject(self, source: bytes) -> Program:
        """A form of the program, and the test program without what it should see."""
        worker = resources.files("envkit.environments.code_editor.graders").joinpath(_PROBE).read_bytes()
        tests = str(self._task.hidden["tests"]).encode()
        return Program(
            {probe.PROGRAM: source, probe.TESTS: tests, _PROBE: worker}, _PROBE, probe.probe.__name__
        )
