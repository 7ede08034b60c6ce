"""Small environments for tests of the suite that environments inherit: one that is sound, and faulty ones.

In a module of their own, since vectors make them in other processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from envkit import Env, Exploit, Task, UsageError, check, tool
from envkit.tools import format_call


class Echo(Env):
    """Say words backwards."""

    id: ClassVar[str] = "echo"

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
        words = [f"{split} {word}" for word in ("tea", "salt", "ash")]
        return [
            Task(each, split, f"Say {each} backwards.", {}, hidden={"said": each[::-1]}) for each in words
        ]

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return [format_call("say", {"words": task.hidden["said"]}), "over()"]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        return [Exploit("says them forwards", (format_call("say", {"words": task.id}), "over()"))]

    def setup(self, task: Task) -> str:
        self.said = ""
        return task.prompt

    @tool
    def say(self, words: str) -> str:
        """Say some words."""
        said = words.encode(errors="replace")
        program = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
        self.said = self.sandbox.run([self.sandbox.python, "-c", program], stdin=said).stdout.decode()
        return f"You say: {self.said}"

    @tool(ends=True)
    def over(self) -> str:
        """End."""
        return "Over."

    @check()
    def said_backwards(self) -> bool:
        return self.said == self.task.hidden["said"]


class Choking(Echo):
    """Takes nothing but ASCII."""

    @tool
    def say(self, words: str) -> str:
        """Say some words."""
        return super().say(words.encode("ascii").decode())


class Overpaying(Echo):
    """Pays for what it does not know."""

    @check(weight=0)
    def length(self) -> float:
        return len(self.said)


class Choosy(Echo):
    """Leaves out a task that it was given."""

    def __init__(self, *, tasks: Sequence[Task], **options: Any) -> None:
        super().__init__(tasks=tasks[1:], **options)


class Ageing(Echo):
    """Remembers earlier episodes."""

    episodes = 0

    def setup(self, task: Task) -> str:
        self.episodes += 1
        return f"{super().setup(task)} It is episode {self.episodes}."


class Gossip(Echo):
    """Instances know what another was asked."""

    asked: ClassVar[list[str]] = []

    def setup(self, task: Task) -> str:
        self.asked.append(task.id)
        return f"{super().setup(task)} Before: {self.asked[-3:-1]}."


class Local(Echo):
    """Looks different in another process."""

    def setup(self, task: Task) -> str:
        return f"{super().setup(task)} This is process {os.getpid()}."


class Leaking(Echo):
    """Holds out what it trains on."""

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
        return [Task(f"{split}-tea", split, "Say tea backwards.", {}, {"source": "tea"})]


class Restless(Echo):
    """Makes other tasks each time."""

    calls: ClassVar[list[str]] = []

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
        cls.calls.append(split)
        return [Task(f"{split}-{len(cls.calls)}", split, "Say tea backwards.", {})]


class Unmeasured(Echo):
    """Has nothing held out, and no exploits."""

    @classmethod
    def make_tasks(cls, split: str, **options: Any) -> Sequence[Task]:
        if split == "heldout":
            raise UsageError("there are no heldout tasks")
        return super().make_tasks(split, **options)

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        return ()
