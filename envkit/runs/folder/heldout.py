"""Check that held-out tasks are held out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from envkit.errors import TaskFileError
from envkit.types import Task


def require_heldout(
    heldout: Sequence[Task], train: Sequence[Task] = (), learned: Collection[str] = ()
) -> None:
    """Raise if train and held-out tasks overlap.

    Args:
        heldout: tasks to measure on.
        train: tasks to learn from.
        learned: sources of tasks that an adapter was trained on before.

    Raises:
        TaskFileError: a task is of the wrong split, or a source is in both sets.
    """
    if wrong := next((task for task in heldout if task.split not in ("heldout", "test")), None):
        raise TaskFileError(
            f"task {wrong.id} is of split {wrong.split!r}; expected 'heldout' or 'test' to evaluate on"
        )
    if wrong := next((task for task in train if task.split != "train"), None):
        raise TaskFileError(f"task {wrong.id} is of split {wrong.split!r}; expected 'train' to learn from")
    if shared := {task.source for task in train} & {task.source for task in heldout}:
        raise TaskFileError(
            f"{len(shared)} sources are in both the train and the held-out tasks, such as {min(shared)}; "
            "choose tasks of other sources"
        )
    if shared := {task.source for task in heldout}.intersection(learned):
        raise TaskFileError(
            f"an adapter was trained on {len(shared)} sources of the held-out tasks, such as {min(shared)}; "
            "choose tasks of other sources"
        )
