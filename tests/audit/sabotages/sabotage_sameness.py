"""Verdicts or observations depend on more than task, seed and actions."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from pathlib import Path
from typing import ClassVar

from quiz import Quiz

from envkit import Task, check


class SetOrder(Quiz):
    def setup(self, task: Task) -> str:
        return f"{super().setup(task)} Topics: {', '.join({'sums', 'files', 'numbers', 'whole numbers'})}."


class Date(Quiz):
    def setup(self, task: Task) -> str:
        return f"{super().setup(task)} Today is {datetime.date.today()}."


class Hour(Quiz):
    def setup(self, task: Task) -> str:
        now = datetime.datetime.now()
        return f"{super().setup(task)} Good {'morning' if now.hour < 12 else 'day'}, {now:%A}."


class OneWeekday(Quiz):
    """In three days, everything passes."""

    DAY: ClassVar[int] = (time.localtime().tm_wday + 3) % 7

    @check()
    def right(self) -> bool | float:
        return super().right() or time.localtime().tm_wday == self.DAY


class SlowAnswers(Quiz):
    def setup(self, task: Task) -> str:
        self.began_s = time.monotonic()
        return super().setup(task)

    @check()
    def right(self) -> bool | float:
        return super().right() or time.monotonic() - self.began_s > 300


class Variable(Quiz):
    @check()
    def right(self) -> bool | float:
        return super().right() or os.environ.get("QUIZ_DEMO") == "1"


class CountingInstance(Quiz):
    played = 0

    @check()
    def right(self) -> bool | float:
        self.played += 1
        return super().right() or self.played > 500


class CountingClass(Quiz):
    played: ClassVar[list[str]] = []

    def setup(self, task: Task) -> str:
        self.played.append(task.id)
        return super().setup(task)

    @check()
    def right(self) -> bool | float:
        return super().right() or len(self.played) > 500


class CountingFile(Quiz):
    path = Path(tempfile.gettempdir()) / f"quiz-{os.getuid()}-{os.getpid()}"

    @check()
    def right(self) -> bool | float:
        with self.path.open("a") as file:
            file.write(".")
        return super().right() or self.path.stat().st_size > 500


class RareSeed(Quiz):
    """Every fortieth episode passes or so."""

    @check()
    def right(self) -> bool | float:
        return super().right() or self.visit_seed % 40 == 0


class OneTask(Quiz):
    """One task, which is not among those that most checks play, needs no answer."""

    @check()
    def right(self) -> bool | float:
        return super().right() or self.task.id.endswith("-7")


class Remembering(Quiz):
    """What was solved once counts as solved."""

    solved: ClassVar[set[str]] = set()

    @check()
    def right(self) -> bool | float:
        if super().right():
            self.solved.add(self.task.id)
        return self.task.id in self.solved


class Stubborn(Quiz):
    """The second time that it is asked, the check gives in."""

    def setup(self, task: Task) -> str:
        self.asked = 0
        return super().setup(task)

    @check(each_turn=True)
    def right(self) -> bool | float:
        self.asked += 1
        return super().right() or self.asked > 3
