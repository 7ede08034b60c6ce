"""Numbers of benchmarks: compared with bounds, written at once, and kept beside those of other parts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import side_by_side
from bounds import Bound, Part, measure

BOUNDS = {
    "ratio": Bound("speed", "ours", "theirs", least=0.8),
    "size": Bound("memory", "peak", most=10.0),
    "told": Bound("memory", "peak", "base"),
    "never": Bound("speed", "ours", "absent", least=1.0),
}


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(side_by_side, "ROOT", tmp_path)
    return tmp_path / "runs" / "bench" / "some.json"


def speed(*ours: float) -> Part:
    return lambda: {"ours": ours, "theirs": [10.0]}


def memory(peak: float) -> Part:
    return lambda: {"peak": [peak], "base": [2.0]}


def read(results: Path) -> Any:
    return json.loads(results.read_text())


def test_medians_are_compared_and_parts_are_kept(results: Path) -> None:
    measure("some", {"speed": speed(7.0, 9.0, 100.0)}, BOUNDS, {"commit": "a"})
    measure("some", {"memory": memory(9.0)}, BOUNDS, {"commit": "b"})
    found = read(results)
    assert (found["ratio"], found["size"], found["told"]) == (0.9, 9.0, 4.5)
    assert "never" not in found
    assert {name: part["facts"]["commit"] for name, part in found["parts"].items()} == {
        "speed": "a",
        "memory": "b",
    }
    assert found["parts"]["speed"]["found"]["ours"] == [7.0, 9.0, 100.0]
    assert "| ratio | 0.9 | at least 0.8 |" in results.with_suffix(".md").read_text()


def test_what_is_no_number_is_out_of_bounds() -> None:
    assert BOUNDS["ratio"].is_missed(float("nan"))
    assert BOUNDS["size"].is_missed(float("nan"))


def test_a_number_out_of_bounds_is_written_and_ends_the_benchmark(results: Path) -> None:
    parts = {"speed": speed(7.0), "memory": memory(11.0)}
    with pytest.raises(SystemExit, match="out of bounds: ratio, size"):
        measure("some", parts, BOUNDS, {})
    assert read(results)["ratio"] == 0.7
    with pytest.raises(SystemExit, match=r"out of bounds: size$"):  # only the parts of this run count
        measure("some", {"memory": memory(11.0)}, BOUNDS, {})


def test_results_of_another_format_are_left_alone(results: Path) -> None:
    results.parent.mkdir(parents=True)
    results.write_text("{}")
    with pytest.raises(SystemExit, match="move it elsewhere"):
        measure("some", {"memory": memory(1.0)}, BOUNDS, {})
    assert results.read_text() == "{}"
