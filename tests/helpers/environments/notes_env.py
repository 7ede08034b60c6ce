"""Notes behind an MCP server, in a module that other processes can import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from envkit import Task, UsageError, check, tool
from envkit.env.wrappers.mcp import McpEnv
from envkit.sandbox import PYTHON_OPTIONS

PROGRAM = Path(__file__).with_name("notes_server.py").read_text()
WORDS = ("tea", "milk", "bread", "jam", "soap", "eggs")
HELD_OUT = ("salt", "rice")


def _task(split: str, word: str) -> Task:
    return Task(f"{split}/{word}", split, f"Note {word}.", {}, hidden={"word": word})


TASKS = [_task("train", word) for word in WORDS]


class Notes(McpEnv):
    id: ClassVar[str] = "notes"
    only = ("add", "show")

    @classmethod
    def make_tasks(cls, split: str, **options: Any) -> Sequence[Task]:
        if split == "heldout":
            return [_task(split, word) for word in HELD_OUT]
        if split in ("train", "starter"):
            return TASKS
        return super().make_tasks(split, **options)

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return [f"add({task.hidden['word']!r})", "done()"]

    def server(self) -> Sequence[str]:
        return [self.sandbox.python, *PYTHON_OPTIONS, "-c", PROGRAM]

    @tool(ends=True)
    def done(self) -> str:
        """End it."""
        return "Bye."

    @check()
    def is_noted(self) -> bool:
        noted = self.session.call("show", {"number": 1})
        try:
            self.session.call("show", {"number": 2})
        except UsageError:
            return noted == f"{self.task.hidden['word']}\n[image]"
        return False  # another one, too
