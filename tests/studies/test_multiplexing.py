"""Decoding with many adapters: what is timed, and that a row among others is the row alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from envkit.studies.multiplexing.measure import ManyAdapters

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_rows_of_many_adapters_are_as_alone(tmp_path: Path) -> None:
    many = ManyAdapters(tiny.make(tmp_path / "model"), "float32", 4, 8, 8, 6)
    assert many.largest_difference(4) < 1e-4
    assert many.adapters_bytes > 0


def test_a_difference_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many, other = (ManyAdapters(tiny.make(tmp_path / name), "float32", 4, 8, 8, 6) for name in ("a", "b"))
    alone = other.batch(1)  # with the same adapters on the same base, but asked for another one
    submit = alone.submit
    monkeypatch.setattr(alone, "submit", lambda request: submit(replace(request, adapter="a3")))
    batch = many.batch
    monkeypatch.setattr(ManyAdapters, "batch", lambda self, rows, *more: alone if rows == 1 else batch(rows))
    assert many.largest_difference(4) > 1e-3


def test_all_ways_are_timed(tmp_path: Path) -> None:
    many = ManyAdapters(tiny.make(tmp_path / "model"), "float32", 4, 2, 8, 2)
    speeds = many.speeds([1, 4], [4], rounds=2)
    assert list(speeds) == ["base", "1 together", "4 together", "4 one by one"]
    assert all(len(found) == 2 and min(found) > 0 for found in speeds.values())
