"""Judging by a checkout's own pytest suite; see `envkit.mining.suite.miner`, which makes such tasks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import cast, final

from envkit.environments.code_editor.app import CodeEditor
from envkit.environments.code_editor.judge import hidden_digest
from envkit.grading import Grade, grade_suite
from envkit.grading.suite import WEAKNESS
from envkit.mining.suite.run_variants import with_pytest
from envkit.sandbox import SandboxBackend
from envkit.types import JSON, Task


@final
class Suited:
    """Implements `envkit.environments.code_editor.judge.Judge`."""

    weakness = WEAKNESS
    #: The attack corpus aims at the split oracle, and is known to fool a suite.
    spared = "a pytest suite grades it, which is known to be weaker"

    def __init__(self, task: Task) -> None:
        self._task = task
        self._suite = cast("Mapping[str, JSON]", task.hidden["suite"])
        self.path = str(task.metadata["path"])

    def editor(self) -> CodeEditor:
        return CodeEditor(self.path, focus=str(self._task.hidden["function"]), beside=[*self.beside()])

    def beside(self) -> Mapping[str, bytes]:
        """Files of the project that the agent may read."""
        return {path: text.encode() for path, text in self._task.files.items() if path != self.path}

    def answer(self) -> str:
        """The edit back to the original."""
        edit = cast("Mapping[str, str]", self._task.hidden["edit"])
        return f"<<<<<<< SEARCH\n{edit['search']}\n=======\n{edit['replace']}\n>>>>>>> REPLACE\n"

    def visit(self, count: int, seed: int) -> Hashable:
        """Nothing is drawn."""
        return self._task.id, hidden_digest(self._task)

    def grade(self, source: bytes, backend: SandboxBackend, count: int, seed: int) -> Grade:
        hidden = cast("Mapping[str, str]", self._suite["files"])
        return grade_suite(
            with_pytest(backend, cast("Sequence[str]", self._suite["packages"])),
            {self.path: source},
            {**self.beside(), **{path: text.encode() for path, text in hidden.items()}},
            cast("Sequence[str]", self._suite["wanted"]),
        )
