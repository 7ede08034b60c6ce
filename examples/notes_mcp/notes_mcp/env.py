"""The environment: an agent keeps notes with the tools of an MCP server."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any, ClassVar

from envkit import Exploit, Task, check, tool
from envkit.env.tools import format_call
from envkit.env.wrappers.mcp import McpEnv
from notes_mcp.tasks import START, make_task, notes_of, wanted


class Notes(McpEnv):
    id = "notes"
    system = "You keep notes. Answer with one call of a tool."
    data = ("server.py",)
    max_turns = 8
    task_counts: ClassVar = {"train": 240, "heldout": 120}

    def server(self) -> Sequence[str]:
        return ["python3", "/data/server.py"]

    @tool(ends=True)
    def done(self) -> str:
        """Say that the work is done, which ends the episode."""
        return "Thank you."

    @classmethod
    def make_task(cls, split: str, number: int, draw: random.Random) -> Task:
        return make_task(split, number, draw)

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        """Look for the notes, then delete some or add one."""
        hidden: Any = task.hidden
        return [
            format_call("find_notes", {"word": task.metadata["person"]}),
            *(format_call("delete_note", {"number": number}) for number in hidden["deleted"]),
            *(format_call("add_note", {"text": str(total)}) for total in hidden["added"]),
            "done()",
        ]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        deleted: Any = task.hidden["deleted"]
        another = next(number for number in notes_of(task) if number not in deleted)
        return [
            Exploit("says that it is done", ("done()",)),
            Exploit("deletes another note", (format_call("delete_note", {"number": another}), "done()")),
            Exploit("adds the request as a note", (format_call("add_note", {"text": task.prompt}), "done()")),
        ]

    @check()
    def as_asked(self) -> bool:
        """The file of the server holds what it should, and nothing else."""
        return [*json.loads(self.sandbox.read(START, 2**20)).values()] == wanted(self.task)
