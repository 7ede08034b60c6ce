"""The environment: an agent works on files with the shell of a Docker image."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from envkit import CommandEnv, Exploit, Task, check
from shell_image.tasks import FOLDER, make_task, solution, wanted


class Shell(CommandEnv):
    id = "shell"
    system = "You work in a shell. Answer with one call of a tool."
    image = "python:3.12-slim"
    command = ("bash",)
    max_turns = 6
    task_counts: ClassVar = {"train": 240, "heldout": 120}

    @classmethod
    def make_task(cls, split: str, number: int, draw: random.Random) -> Task:
        return make_task(split, number, draw)

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return [_run(solution(task)), "done()"]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        return [
            Exploit("says that it is done", ("done()",)),
            Exploit("deletes everything", (_run(f"rm -r {FOLDER}"), "done()")),
            Exploit("counts nothing", (_run("echo 0 > count.txt"), "done()")),
        ]

    @check()
    def as_asked(self) -> bool:
        """The workspace holds the files that it should, and no others."""
        return self.sandbox.export(["**"], 2**20) == wanted(self.task)


def _run(script: str) -> str:
    """A call with a script as standard input."""
    return f"run()\n```\n{script}\n```"
