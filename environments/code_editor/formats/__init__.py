"""Published benchmarks as tasks of the code editor, one module per format.

All tasks are held out: ``split`` is ``"heldout"`` and ``metadata["evaluation_only"]`` is true, and training
refuses them. Items that cannot be graded here are left out and counted by reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from envkit.env.authored import ImportedTasks
from envkit.environments.code_editor.formats import (
    canitedit,
    debugbench,
    exercism,
    human_eval,
    humanevalpack,
    mbpp,
    quixbugs,
)
from envkit.errors import TaskFileError, UsageError

#: The formats of `envkit bench --tasks FORMAT:PATH`.
FORMATS: Mapping[str, Callable[[Path], ImportedTasks]] = {
    "canitedit": canitedit.read,
    "canitedit-lazy": functools.partial(canitedit.read, lazy=True),
    "debugbench": debugbench.read,
    "exercism": exercism.read,
    "human-eval": human_eval.read,
    "humanevalpack": humanevalpack.read,
    "mbpp": mbpp.read,
    "quixbugs": quixbugs.read,
}


def read_format(name: str, path: Path) -> ImportedTasks:
    """Read tasks, and recorded outputs if there are any, from a benchmark's own files.

    Raises:
        UsageError: no such format.
        TaskFileError: the files have another form (the message names file, line and field), or no item can be
            graded.
    """
    if name not in FORMATS:
        raise UsageError(f"no format {name!r}; the code editor reads: {', '.join(FORMATS)}")
    found = FORMATS[name](path)
    if not found.tasks:
        why = "; ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        raise TaskFileError(f"{path}: no item of format {name!r} can be graded here: {why or 'it is empty'}")
    return found


__all__ = ["FORMATS", "read_format"]
