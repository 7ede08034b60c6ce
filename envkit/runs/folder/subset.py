"""Choose some of many tasks."""

from __future__ import annotations

from collections.abc import Sequence

from envkit.types import Task


def evenly_spaced(tasks: Sequence[Task], count: int) -> list[Task]:
    """Choose ``count`` tasks from all parts of a list, which may be sorted; all, if it has no more."""
    chosen = min(count, len(tasks))
    return [tasks[number * len(tasks) // chosen] for number in range(chosen)]
