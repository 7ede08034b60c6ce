"""Held-out tasks are train tasks in other clothes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from quiz import Quiz

from envkit import Task


class Renamed(Quiz):
    """Half of the held-out tasks are train tasks with another source."""

    @classmethod
    def make_task(cls, split: str, number: int) -> Task:
        if split != "heldout" or number % 2:
            return super().make_task(split, number)
        task = super().make_task("train", number)
        return dataclasses.replace(
            task, id=f"heldout-{number}", split=split, metadata={"source": f"new {number}"}
        )


class Reworded(Quiz):
    """One held-out task is a train task with other case and punctuation."""

    @classmethod
    def make_tasks(cls, split: str, **options: Any) -> Sequence[Task]:
        tasks = [*super().make_tasks(split, **options)]
        if split == "heldout":
            known = super().make_tasks("train", **options)[3]
            prompt = known.prompt.upper().replace("?", " ?!")
            tasks[5] = dataclasses.replace(tasks[5], prompt=prompt, files=known.files, hidden=known.hidden)
        return tasks


class Numbered(Quiz):
    """Tasks that look alike and differ by a seed; a third of the held-out seeds are trained on."""

    @classmethod
    def make_task(cls, split: str, number: int) -> Task:
        seed = number if split == "train" else number + 5
        metadata = {"source": f"{split} {number}", "seed": seed}
        prompt, files, hidden = "What is the seed?", {"numbers.txt": "1"}, {"sum": "1"}
        return Task(f"{split}-{number}", split, prompt, files, metadata=metadata, hidden=hidden)

    def setup(self, task: Task) -> str:
        return f"{super().setup(task)}\nseed {task.metadata['seed']}"


class Reported(Quiz):
    """The tasks for final reports are train tasks."""

    @classmethod
    def make_task(cls, split: str, number: int) -> Task:
        task = super().make_task("train" if split == "test" else split, number)
        metadata = {"source": f"{split} {number}"}
        return dataclasses.replace(task, id=f"{split}-{number}", split=split, metadata=metadata)
