"""Small environments for tests of the inherited test suite: a correct one and faulty ones.

They are in a module because vector environments create them in other processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from envkit import Env, Exploit, Task, TaskFileError, UsageError, check, tool
from envkit.env.tools import format_call


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
    """Faulty: raises on actions that are not ASCII."""

    @tool
    def say(self, words: str) -> str:
        """Say some words."""
        return super().say(words.encode("ascii").decode())


class Overpaying(Echo):
    """Faulty: its check returns scores above 1."""

    @check(weight=0)
    def length(self) -> float:
        return len(self.said)


class Choosy(Echo):
    """Faulty: drops a task that it was given."""

    def __init__(self, *, tasks: Sequence[Task], **options: Any) -> None:
        super().__init__(tasks=tasks[1:], **options)


class Ageing(Echo):
    """Faulty: observations depend on earlier episodes."""

    episodes = 0

    def setup(self, task: Task) -> str:
        self.episodes += 1
        return f"{super().setup(task)} It is episode {self.episodes}."


class Gossip(Echo):
    """Faulty: instances share state."""

    asked: ClassVar[list[str]] = []

    def setup(self, task: Task) -> str:
        self.asked.append(task.id)
        return f"{super().setup(task)} Before: {self.asked[-3:-1]}."


class Local(Echo):
    """Faulty: observations differ between processes."""

    def setup(self, task: Task) -> str:
        return f"{super().setup(task)} This is process {os.getpid()}."


class Leaking(Echo):
    """Faulty: the splits share a source."""

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
        return [Task(f"{split}-tea", split, "Say tea backwards.", {}, {"source": "tea"})]


class Restless(Echo):
    """Faulty: makes different tasks at every call."""

    calls: ClassVar[list[str]] = []

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
        cls.calls.append(split)
        return [Task(f"{split}-{len(cls.calls)}", split, "Say tea backwards.", {})]


class Undisclosed(Echo):
    """Faulty: the tasks for final reports are train tasks that name another split."""

    @classmethod
    def make_tasks(cls, split: str, **options: Any) -> Sequence[Task]:
        tasks = super().make_tasks("train" if split == "test" else split, **options)
        return [replace(task, split="heldout") for task in tasks] if split == "test" else tasks


class Unreported(Echo):
    """Faulty: what makes the tasks for final reports crashes."""

    @classmethod
    def make_tasks(cls, split: str, **options: Any) -> Sequence[Task]:
        if split == "test":
            raise KeyError("tset")
        return super().make_tasks(split, **options)


class Unreadable(Echo):
    """Faulty: the file of the tasks for final reports is damaged."""

    @classmethod
    def make_tasks(cls, split: str, **options: Any) -> Sequence[Task]:
        if split == "test":
            raise TaskFileError("test.jsonl, line 3: not JSON")
        return super().make_tasks(split, **options)


class Unmeasured(Echo):
    """Has no held-out tasks and no exploits."""

    @classmethod
    def make_tasks(cls, split: str, **options: Any) -> Sequence[Task]:
        if split == "heldout":
            raise UsageError("there are no heldout tasks")
        return super().make_tasks(split, **options)

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        return ()
