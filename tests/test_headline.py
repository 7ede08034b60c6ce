"""The README's table and plot say what the committed reports say."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import headline
import pytest

ROOT = Path(__file__).parents[1]


def test_the_readme_has_the_table_of_the_reports() -> None:
    assert headline.short_table() in (ROOT / "README.md").read_text()


def test_the_results_have_the_tables_of_the_seeds() -> None:
    page = (headline.RESULTS / "README.md").read_text()
    assert headline.seeds() in page
    assert headline.table() in page
    assert headline.differences() in page
    assert headline.larger() in (headline.RESULTS / "trained-1.5b" / "README.md").read_text()


@pytest.mark.parametrize("temperature", [headline.SAMPLED, headline.GREEDY])
def test_no_row_is_cut_off_by_a_lower_limit_than_that_of_others(temperature: str) -> None:
    rows = [row for line in headline.LINES for row in line.rows(temperature)]
    most = max(row.origin.max_completion_length for row in rows)
    lower = [row for row in rows if 0 < row.origin.max_completion_length < most]
    assert {row.name: sum(result.cut_off for result in row.results) for row in lower} == {
        row.name: 0 for row in lower
    }


def test_the_plot_is_that_of_the_reports() -> None:
    assert (headline.RESULTS / "solved.svg").read_text() == headline.plot()
