"""Several processes measure one grid, each the cells that no other is at work in."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from envkit.runtime.display import Silent
from envkit.runtime.store import lock_if_free, locked_folder
from envkit.studies.grid.arms import ARMS
from envkit.studies.grid.cells import CellFolder
from envkit.studies.grid.grid import Grid
from envkit.studies.grid.measurements import SOLVE
from envkit.studies.grid.queue import measure_missing


class Recording(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def cells_of(root: Path, *arms: str) -> list[tuple[CellFolder, str]]:
    return [(CellFolder.of(root, ARMS[arm], 0), SOLVE) for arm in arms]


def mark(cell: CellFolder, part: str) -> None:
    """Measure, for a test: the part's file is there."""
    (cell.path / f"{part}.json").write_text("{}")


def test_cells_of_another_process_come_last_and_what_is_made_of_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, display, order = Grid(tmp_path, 1), Recording(), list[str]()
    missing = cells_of(tmp_path, "base", "r16", "warm", "r1", "r8")
    other, measured_there = missing[1][0], missing[4][0]
    other.path.mkdir(parents=True)

    def measure(cell: CellFolder, part: str) -> None:
        order.append(cell.arm.name)
        mark(cell, part)
        with lock_if_free(cell.path) as is_free:
            assert not is_free, "no other process may begin it"
        if cell.arm.name == "r1":  # meanwhile, the other process has measured one
            measured_there.path.mkdir(parents=True)
            mark(measured_there, SOLVE)

    with ExitStack() as lock:
        lock.enter_context(locked_folder(other.path))
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            lock.close()  # the other process was stopped before it had finished

        monkeypatch.setattr("envkit.studies.grid.queue.time.sleep", sleep)
        assert measure_missing(grid, missing, measure, display) is None
    assert order == ["base", "r1", "r16", "warm"]
    assert len(slept) == 1
    assert "another process measures what is left: r16, seed 0, warm, seed 0; waiting for it" in display.said
    with lock_if_free(other.path) as is_free:
        assert is_free


def test_what_is_made_of_a_postponed_cell_is_postponed_too(tmp_path: Path) -> None:
    """The other process is stopped after its cell was postponed, and before what is made of it is reached."""
    missing, order = cells_of(tmp_path, "r16", "r1", "warm"), list[str]()
    other = missing[0][0]
    other.path.mkdir(parents=True)
    with ExitStack() as lock:
        lock.enter_context(locked_folder(other.path))

        def measure(cell: CellFolder, part: str) -> None:
            lock.close()
            order.append(cell.arm.name)
            mark(cell, part)

        assert measure_missing(Grid(tmp_path, 1), missing, measure, Silent()) is None
    assert order == ["r1", "r16", "warm"]


def test_a_signal_ends_it(tmp_path: Path) -> None:
    missing = cells_of(tmp_path, "base", "r1")

    def stop(cell: CellFolder, part: str) -> signal.Signals:
        return signal.SIGINT

    assert measure_missing(Grid(tmp_path, 1), missing, stop, Silent()) == signal.SIGINT
