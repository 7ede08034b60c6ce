"""Measure what a study lacks, beside other processes that measure cells of the same grid."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from envkit.runtime.store import lock_if_free

if TYPE_CHECKING:
    from envkit.runtime.display import Display
    from envkit.studies.grid.cells import CellFolder
    from envkit.studies.grid.grid import Grid

#: Seconds after which it is asked again if other processes have finished.
_POLL_S: Final = 10.0


def measure_missing(
    grid: Grid,
    missing: Iterable[tuple[CellFolder, str]],
    measure: Callable[[CellFolder, str], signal.Signals | None],
    display: Display,
) -> signal.Signals | None:
    """Measure parts of cells, one after another; returns what stopped it.

    A cell that another process is at work in is left to it, and comes back last, with all cells that are made
    of it.

    Args:
        grid: the cells.
        missing: (cell, part), in the order in which they need each other.
        measure: measures one; returns what stopped it.
        display: told what is measured, and what is waited for.
    """
    left = [*missing]
    number, count, is_told = 0, len(left), False
    while left:
        later: list[tuple[CellFolder, str]] = []
        for cell, part in left:
            postponed = {other.path for other, _ in later}
            if any(other.path in postponed or _is_locked(other.path) for other in grid.made_of(cell)):
                later.append((cell, part))
                continue
            cell.path.mkdir(parents=True, exist_ok=True)
            with lock_if_free(cell.path) as is_free:
                if not is_free:
                    later.append((cell, part))
                    continue
                number += 1
                if grid.has(cell, part):  # by another process; or a router, for all environments at once
                    continue
                display.say(f"{number} of {count}: {cell.name}, {part}")
                if stopped := measure(cell, part):
                    return stopped
        if len(later) == len(left):
            if not is_told:
                names = ", ".join(dict.fromkeys(cell.name for cell, _ in later))
                display.say(f"another process measures what is left: {names}; waiting for it")
                is_told = True
            time.sleep(_POLL_S)
        left = later
    return None


def _is_locked(folder: Path) -> bool:
    if not folder.exists():
        return False
    with lock_if_free(folder) as is_free:
        return not is_free
