"""Ways of changing a model side by side, and which of them are on the Pareto front."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
import sample_reports

from envkit import UsageError
from envkit.measure.number_text import NONE
from envkit.measure.report.data import Origin, Row, TaskResult
from envkit.measure.stats import Interval
from envkit.runtime.store import folder_name
from envkit.studies.controls.table import Control, Controls, make_controls, table_of, write_page

CONTROLS = (
    Control("base"),
    Control("lora", "all-linear", 16, 35_000, 100, 5_000),
    Control("attention", "attention", 16, 9_000, 100, 5_000),
    Control("vectors", "steering", 0, 90, 100, 5_000),
    Control("downloaded", "all-linear", 4, 9_000, None, None),
)
SOLVED = {"base": 0, "lora": 3, "attention": 2, "vectors": 1, "downloaded": 1}
KL = {"lora": 0.5, "attention": 0.2, "vectors": 0.1}


def compared(**solved: int) -> Controls:
    """Rows that solved so many of 4 samples of each of 50 tasks."""
    rows = [
        Row(
            name,
            "",
            tuple(TaskResult(f"task-{n}", f"source-{n}", "", 4, count) for n in range(50)),
            origin=Origin("local", "m", "" if name == "base" else name),
        )
        for name, count in {**SOLVED, **solved}.items()
    ]
    report = replace(sample_reports.report(environment="desk"), rows=tuple(rows), differences=())
    return make_controls(report, CONTROLS, {name: Interval(kl, kl, kl, 50) for name, kl in KL.items()})


def test_a_row_that_solves_less_and_costs_as_much_is_not_on_the_front() -> None:
    assert compared().front == {"base", "lora", "attention", "vectors"}
    assert compared(attention=3).front == {"base", "attention", "vectors"}
    assert compared(vectors=0).front == {"base", "lora", "attention"}
    # What it costs is not known, so that it can be on no front, and keeps none from it.
    assert compared(downloaded=4).front == {"base", "lora", "attention", "vectors"}


def test_equal_rows_are_both_on_the_front() -> None:
    found = compared(lora=2)
    twin = replace(found.rows[1], control=replace(CONTROLS[2], row="twin"), kl=found.rows[2].kl)
    both = Controls("desk", (found.rows[0], found.rows[2], twin))
    assert both.front == {"base", "attention", "twin"}


def test_each_row_is_compared_with_the_base_task_by_task() -> None:
    found = compared()
    differences = [row.cell.difference and row.cell.difference.estimate for row in found.rows]
    assert differences == [None, 3 / 4, 2 / 4, 1 / 4, 1 / 4]


def test_the_page_shows_what_is_known_cheapest_first(tmp_path: Path) -> None:
    found = compared()
    table = table_of(found)
    assert [row[0] for row in table.rows] == ["base", "vectors", "attention", "downloaded", "lora"]
    by_name = {row[0]: row[1:] for row in table.rows}
    assert by_name["vectors"][0] == "steering"
    assert by_name["lora"][0] == "all-linear, rank 16"
    assert by_name["lora"][3:] == ("35,000", "100", "5,000", "0.500 [0.500, 0.500]", "yes")
    assert by_name["downloaded"][4:] == (NONE, NONE, NONE, "")
    text = write_page(found, tmp_path, "envkit study controls <runs>").read_text()
    assert "| lora | all-linear, rank 16 |" in text
    assert "`envkit study controls <runs>`" in text
    assert "[The report](desk/report.html)" in text
    harness = Controls("desk@programs/own.toml", found.rows)
    text = write_page(harness, tmp_path, "").read_text()
    assert f"[The report]({quote(folder_name(harness.environment))}/report.html)" in text


def test_a_missing_row_is_named() -> None:
    report = replace(sample_reports.report(environment="desk"), differences=())
    with pytest.raises(UsageError, match="has no row 'lora' yet; resume the run"):
        make_controls(
            report,
            (replace(CONTROLS[0], row=report.rows[0].name), CONTROLS[1]),
            {},
        )
