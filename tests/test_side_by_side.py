"""Benchmark reports: results are written at once, and those of other operations are kept."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import side_by_side
from side_by_side import Operation, Ratio, Ways, compare_each

RATIOS = {
    "one": Ratio("first", "slow", "fast", 2.0),
    "other": Ratio("second", "slow", "fast", 2.0),
    "never": Ratio("first", "absent", "fast", 2.0),
}


class Clock:
    """A clock that only `take` advances."""

    now_s = 0.0
    strftime = staticmethod(time.strftime)

    def perf_counter(self) -> float:
        return self.now_s

    def take(self, seconds: float) -> None:
        self.now_s += seconds


CLOCK = Clock()


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(side_by_side, "ROOT", tmp_path)
    monkeypatch.setattr(side_by_side, "time", CLOCK)
    return tmp_path / "runs" / "bench"


def operation(log: list[str], name: str, slow_s: float = 3.0) -> Operation:
    @contextlib.contextmanager
    def open_operation() -> Generator[Ways]:
        log.append(f"{name} opens")
        yield {"slow": lambda: CLOCK.take(slow_s), "fast": lambda: CLOCK.take(1.0)}
        log.append(f"{name} closes")

    return open_operation


def run(log: list[str], *names: str, commit: str = "a", slow_s: float = 3.0) -> None:
    chosen = {name: operation(log, name, slow_s) for name in names}
    compare_each("some", chosen, RATIOS, 2, {"commit": commit})


def read_report(root: Path) -> Any:
    return json.loads((root / "some.json").read_text())


def test_one_operation_is_open_at_a_time(root: Path) -> None:
    log: list[str] = []
    run(log, "first", "second")
    assert log == ["first opens", "first closes", "second opens", "second closes"]
    found = read_report(root)
    assert found["one"] == found["other"] == pytest.approx(3)
    assert "never" not in found


def test_measuring_one_operation_keeps_the_results_of_others(root: Path) -> None:
    run([], "first", "second")
    before = read_report(root)
    run([], "second", commit="b", slow_s=4.0)
    after = read_report(root)
    assert (after["one"], after["other"]) == (before["one"], pytest.approx(4))
    assert after["samples_s"]["first, slow"] == before["samples_s"]["first, slow"]
    assert after["samples_s"]["second, slow"] == pytest.approx([4, 4])
    assert {name: facts["commit"] for name, facts in after["operations"].items()} == {
        "first": "a",
        "second": "b",
    }
    written = (root / "some.md").read_text()
    assert f"| first | {after['operations']['first']['date']} |" in written
    assert "| one |" in written
    assert "| second | slow |" in written


def test_only_ratios_measured_now_are_compared_with_their_bar(root: Path) -> None:
    with pytest.raises(SystemExit, match="below the bar: other"):
        run([], "second", slow_s=1.0)
    run([], "first")
    assert read_report(root)["other"] == pytest.approx(1)


def test_results_are_written_before_the_next_operation_runs(root: Path) -> None:
    @contextlib.contextmanager
    def broken() -> Generator[Ways]:
        raise MemoryError
        yield {}

    with pytest.raises(MemoryError):
        compare_each("some", {"first": operation([], "first"), "second": broken}, RATIOS, 2, {})
    assert list(read_report(root)["operations"]) == ["first"]


def test_a_file_of_another_kind_is_refused_and_not_overwritten(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "some.json").write_text('{"one": 3.0}')
    log: list[str] = []
    with pytest.raises(SystemExit, match="move it elsewhere"):
        run(log, "first")
    assert log == []
    assert read_report(root) == {"one": 3.0}
