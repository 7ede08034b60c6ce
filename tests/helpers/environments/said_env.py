"""Environments whose tasks random weights solve sometimes: say a letter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from envkit import Env, Task, check
from envkit.env.authored import ActionResult, ImportedTasks


class SaidLetters(Env):
    """Say the task's letter."""

    id: ClassVar[str] = "letters"
    system: ClassVar[str] = "Say it."
    max_turns = 1
    repeated: ClassVar[int] = 1

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
        return [
            Task(f"{split} {number}", split, f"{split} {number}: say {letter}.", {}, {"letter": letter})
            for number, letter in enumerate("aeinorstl" * cls.repeated)
        ]

    @classmethod
    def import_tasks(cls, format: str, path: Path) -> ImportedTasks:
        tasks = tuple(cls.make_tasks("heldout"))
        right = {task.id: (str(task.metadata["letter"]),) for task in tasks}
        wrong = {task.id: ("?",) for task in tasks}
        return ImportedTasks(tasks, {"gpt-4-0613": right, "larger": wrong})

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return [str(task.metadata["letter"])]

    def setup(self, task: Task) -> str:
        self._said = ""
        return task.prompt

    def apply(self, action: str) -> ActionResult:
        self._said = action
        return ActionResult("Thanks.", done=True)

    @check()
    def says_it(self) -> bool:
        return str(self.task.metadata["letter"]) in self._said


class CodeEditorLetters(SaidLetters):
    id: ClassVar[str] = "code-editor"
    repeated: ClassVar[int] = 12  # a router needs a hundred prompts of each specialist


class SqlDeskLetters(CodeEditorLetters):
    id: ClassVar[str] = "sql-desk"


class ServiceDeskLetters(CodeEditorLetters):
    id: ClassVar[str] = "service-desk"
