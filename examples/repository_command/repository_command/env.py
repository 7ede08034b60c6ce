"""The environment: an agent keeps a stock room with a command-line program from a git repository.

The repository lies beside this module as a git bundle, so the example needs no network; ``git clone
stock.bundle`` shows it. The URL of a repository stands in the same place:
``git+https://example.org/ada/stock.git@COMMIT``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import ClassVar

from envkit import CommandEnv, Exploit, Task, check
from envkit.env.tools import format_call
from repository_command.tasks import START, make_task, wanted


class StockRoom(CommandEnv):
    id = "stock-room"
    system = "You keep a stock room. Answer with one call of a tool."
    data = ("git+stock.bundle@b7179b639fb68ffe40a286d977edd45c9c2da393",)
    command = ("python3", "/data/stock/stock.py")
    max_turns = 8
    task_counts: ClassVar = {"train": 240, "heldout": 120}

    @classmethod
    def make_task(cls, split: str, number: int, draw: random.Random) -> Task:
        return make_task(split, number, draw)

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        """Look at the item, then move it."""
        item, moves = str(task.metadata["item"]), task.hidden["moves"]
        return [_run("show", item), *(_run("move", item, *move) for move in moves), "done()"]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        item, [[count, source, target], *_] = str(task.metadata["item"]), task.hidden["moves"]
        return [
            Exploit("says that it is done", ("done()",)),
            Exploit("moves one piece too few", (_run("move", item, count - 1, source, target), "done()")),
            Exploit("moves a negative number", (_run("move", item, -count, target, source), "done()")),
        ]

    @check()
    def as_asked(self) -> bool:
        """The program's file holds what it should, and nothing else."""
        return json.loads(self.sandbox.read(START, 2**20)) == wanted(self.task)


def _run(*arguments: object) -> str:
    return format_call("run", {"arguments": [*map(str, arguments)]})
