"""What a tracker is: a function that begins a tracked run and yields the function that logs to it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from envkit.errors import MissingExtraError

#: Logs the metrics of one step: ``log("rl", 3, {"reward": 0.5, "loss": 0.01})``. The phases are ``"sft"`` and
#: ``"rl"``, whose steps count from 1, and ``"eval"``, at the last RL step.
Log: TypeAlias = Callable[[str, int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A training run, as a tracker sees it.

    Args:
        id: the run's name, the same when it is resumed. It has no slash: seed 2 of run ``R`` is ``R-seed-2``.
        group: id that all seeds of a run share; empty if the run has one seed.
        folder: the run folder, in which the tracker may keep files.
        config: the settings (`envkit.TrainConfig` as plain data) and ``environments``.
    """

    id: str
    group: str
    folder: Path
    config: Mapping[str, Any]


#: Opens a run when it is entered. The function that it yields is called after every step, and training waits
#: for it. An exception that leaves the block tells that the run failed.
Tracker: TypeAlias = Callable[[TrackedRun], AbstractContextManager[Log]]


def imported(package: str, extra: str) -> Any:
    """Import a tracker's library, which is done only for a tracker that was asked for.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(error.name or package, extra) from error
