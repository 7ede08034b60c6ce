"""Damaged reports: reading any file works, or fails with one line that names the file."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_reports import report

from envkit.errors import StoreError, UsageError
from envkit.measure.leaderboard.data import make_leaderboard
from envkit.measure.leaderboard.page import write_leaderboard
from envkit.measure.report.data import ReportData
from envkit.measure.report.page import load_report, load_reports, write_report
from envkit.runtime.prices import load_prices

pytestmark = pytest.mark.slow  # hundreds of reports

PRICES = load_prices()
#: Small, so that hundreds of pages are made in seconds.
WHOLE = replace(report(tasks=4), training=report(tasks=4).training[:3])
DOCUMENT: dict[str, Any] = json.loads(WHOLE.to_json())
ODD = st.one_of(
    st.sampled_from([None, True, "", "x", "\ud800", "../..", "\0", [], [None], {}, {"a": 1}]),
    st.sampled_from([-1, 0, 1, 3, 2**31, 2**53, 2**64, 10**400, 0.5, -0.0, 1e308, -1e308, 1e-320]),
    st.sampled_from([float("nan"), float("inf"), -float("inf")]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a document."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in entries:
        yield (*path, key)
        yield from places(inner, (*path, key))


PLACES = sorted(places(DOCUMENT), key=str)


def damaged(path: tuple[Any, ...], what: str, value: Any) -> str:
    document = copy.deepcopy(DOCUMENT)
    inner: Any = document
    for key in path[:-1]:
        inner = inner[key]
    match what:
        case "delete":
            del inner[path[-1]]
        case "add" if isinstance(inner, dict):
            inner["unheard_of"] = value
        case "repeat" if isinstance(inner, list):
            inner.append(copy.deepcopy(inner[path[-1]]))
        case _:
            inner[path[-1]] = value
    return json.dumps(document)


def read_and_write(folder: Path) -> None:
    """Do what the commands `report` and `leaderboard` do with a report."""
    data = load_report(folder)
    write_report(data, folder, overwrite=True)
    write_leaderboard(make_leaderboard([data], PRICES), folder / "board")


def assert_works_or_is_refused(folder: Path) -> None:
    message = ""
    try:
        read_and_write(folder)
    except StoreError as error:
        message = str(error)
        if str(folder / "report.json") not in message:
            pytest.fail(f"no file is named: {message}")
    except UsageError as error:  # such as a machine without a price
        message = str(error)
    assert "\n" not in message


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), st.sampled_from(["replace", "delete", "add", "repeat"]), ODD)
def test_a_damaged_field_is_named_or_harmless(
    tmp_path: Path, path: tuple[Any, ...], what: str, value: Any
) -> None:
    (tmp_path / "report.json").write_text(damaged(path, what, value))
    assert_works_or_is_refused(tmp_path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(WHOLE.to_json())), st.binary(max_size=8))
def test_a_torn_file_is_refused_or_harmless(tmp_path: Path, end: int, more: bytes) -> None:
    (tmp_path / "report.json").write_bytes(WHOLE.to_json().encode()[:end] + more)
    assert_works_or_is_refused(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("arms", 2, "origin", "kind"),
            "alien",
            r"report.arms\[2\].origin: kind is 'alien'; expected one of",
        ),
        (("arms", 2, "items", 0, "seconds"), None, r"arms\[2\].items\[0\]: seconds is nan"),
        (("arms", 2, "items", 0, "samples"), 2**60, r"arms\[2\].items\[0\]: task "),
        (("arms", 2, "items", 0, "prompt_tokens"), -1, "prompt_tokens is -1; expected a whole number"),
        (("training", 0, "loss"), 1e308, r"training\[0\]: loss is 1e\+308"),
    ],
)
def test_value_out_of_range_is_named(tmp_path: Path, path: tuple[Any, ...], value: Any, message: str) -> None:
    (tmp_path / "report.json").write_text(damaged(path, "replace", value))
    with pytest.raises(StoreError, match=rf"report\.json: .*{message}"):
        load_report(tmp_path)


def test_deep_json_and_files_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("[" * 100_000)
    with pytest.raises(StoreError, match=r"report\.json: "):
        load_reports(tmp_path)
    (tmp_path / "report.json").unlink()
    (tmp_path / "report.json").symlink_to("/dev/zero")
    with pytest.raises(StoreError, match=r"report\.json: "):
        load_reports(tmp_path)


@pytest.mark.parametrize("name", ["report.html", "report.md", "report.json"])
def test_a_folder_in_the_place_of_a_report_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for overwrite in (False, True):
        with pytest.raises(StoreError, match=rf"{name} is not a file; move it away"):
            write_report(WHOLE, tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_files_of_earlier_versions_keep_their_keys() -> None:
    """Rows are ``arms`` and results are ``items`` in the file, as in every report that was ever written."""
    assert {"arms", "differences", "examples"} <= DOCUMENT.keys()
    assert DOCUMENT.keys().isdisjoint({"rows", "results"})
    assert "items" in DOCUMENT["arms"][0]
    assert ReportData.from_json(json.dumps(DOCUMENT)) == WHOLE
