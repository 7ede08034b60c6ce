"""Grade by a checkout's own pytest suite. `envkit.environments.code_editor.mining.suite` makes such tasks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import final

from envkit.env.grade import Grade
from envkit.env.hidden import text_file
from envkit.env.taskfile import digest
from envkit.environments.code_editor.editor import CodeEditor
from envkit.environments.code_editor.graders.suite import WEAKNESS, grade_suite, with_pytest
from envkit.environments.code_editor.mining.hidden import SuiteHidden
from envkit.sandbox import SandboxBackend
from envkit.types import Task


@final
class SuiteGrader:
    """Grades by a pytest suite; implements `envkit.environments.code_editor.graders.base.Grader`."""

    weakness = WEAKNESS
    #: The attack corpus targets hidden calls, and is known to defeat a suite.
    no_attack_reason = "a pytest suite grades it, which is known to be weaker"

    def __init__(self, task: Task, hidden: SuiteHidden) -> None:
        self._task, self._hidden = task, hidden
        self._key = digest([task])
        self.path = str(task.metadata["path"])

    def editor(self, backend: SandboxBackend) -> CodeEditor:
        return CodeEditor(self.path, focus=self._hidden.function, viewable=[*self.read_only_files()])

    def read_only_files(self) -> Mapping[str, bytes]:
        """Return the project's files that the agent may read."""
        others = (path for path in self._task.files if path != self.path)
        return {path: text_file(self._task, path, "a file to read").encode() for path in others}

    def oracle_action(self) -> str:
        """Return the edit that restores the original."""
        edit = self._hidden.edit
        return f"<<<<<<< SEARCH\n{edit.search}\n=======\n{edit.replace}\n>>>>>>> REPLACE\n"

    def cache_key(self, count: int, seed: int) -> Hashable:
        """Return a key that does not depend on the seed, because no input is drawn."""
        return self._key

    def grade(self, source: bytes, backend: SandboxBackend, count: int, seed: int) -> Grade:
        suite = self._hidden.suite
        return grade_suite(
            with_pytest(backend, suite.packages),
            {self.path: source},
            {**self.read_only_files(), **{path: text.encode() for path, text in suite.files.items()}},
            suite.wanted,
        )
