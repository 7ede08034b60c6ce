"""The README's table and plot say what the committed reports say."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import headline

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_has_the_table_of_the_reports() -> None:
    assert headline.table() in README.read_text()


def test_the_plot_is_that_of_the_reports() -> None:
    assert (headline.RESULTS / "solved.svg").read_text() == headline.plot()
