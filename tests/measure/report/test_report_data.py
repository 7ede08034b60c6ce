"""``report.json``: round trips, and errors that name the field."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from envkit.measure.report.data import Difference, ReportData, Row, TaskResult, TrainPoint


def test_round_trip(run: ReportData) -> None:
    assert ReportData.from_json(run.to_json()) == run


def test_an_unmeasured_float_is_null_in_the_file_and_nan_in_memory(run: ReportData) -> None:
    text = replace(run, training=(TrainPoint(1, 0.5, 0.5, math.nan, math.inf),)).to_json()
    assert json.loads(text, parse_constant=pytest.fail)["training"][0]["loss"] is None
    assert math.isnan(ReportData.from_json(text).training[0].loss)


def test_a_lone_surrogate_survives(run: ReportData) -> None:
    odd = replace(run, title="half a \ud83d character")
    assert ReportData.from_json(odd.to_json().encode().decode()) == odd


def _set(document: dict[str, Any], path: list[str | int], value: object) -> None:
    inner: Any = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], 2, "schema is 2"),
        (["titel"], "x", "report has the unknown field 'titel'"),
        (["title"], 3, "report.title is 3; expected str"),
        (["arms"], {}, r"report.arms is \{\}"),
        (["arms", 1, "items", 3, "solved"], "x", r"report.arms\[1\].items\[3\].solved is 'x'; expected int"),
        (["arms", 1, "items", 3, "solved"], True, "solved is True; expected int"),
        (["arms", 1, "items", 3, "solved"], 9, "lib.f1.3: 9 solved of 8 samples"),
        (["arms", 0, "expected"], "1", r"arms\[0\].expected"),
        (["config", "seed"], [1], r"report.config.seed is \[1\]"),
        (["differences", 0, "arm"], "ghost", "names ghost"),
        (["ks"], [0], "ks is"),
    ],
)
def test_a_wrong_field_is_named(run: ReportData, path: list[str | int], value: object, message: str) -> None:
    document = json.loads(run.to_json())
    _set(document, path, value)
    with pytest.raises(ValueError, match=message):
        ReportData.from_json(json.dumps(document))


def test_a_missing_field_is_named(run: ReportData) -> None:
    document = json.loads(run.to_json())
    del document["machine"]["cpu"]
    with pytest.raises(ValueError, match=r"report.machine lacks the field 'cpu'"):
        ReportData.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1'])
def test_a_file_that_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expect|expected"):
        ReportData.from_json(text)


def test_row_names_and_task_ids_are_unique(run: ReportData) -> None:
    item = TaskResult("t", "f", "", 1, 0)
    with pytest.raises(ValueError, match="two results for one task"):
        Row("a", "", (item, item))
    with pytest.raises(ValueError, match="unique"):
        replace(run, rows=(run.rows[0], run.rows[0]), differences=())
    with pytest.raises(ValueError, match="names ghost"):
        replace(run, differences=(Difference("ghost", "base", ""),))
