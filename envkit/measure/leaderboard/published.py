"""Results published elsewhere. The leaderboard lists them in a table of their own and never ranks them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources

from envkit.runtime.plain import decode


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A result as its source states it.

    Args:
        benchmark: name and number of items.
        model: the source's name of the model.
        solved_percent: in [0, 100].
        date: date of the measurement.
        source: repository with commit, or paper.
        usd_per_solved: dollars per solved item; NaN if the source does not say.
    """

    benchmark: str
    model: str
    solved_percent: float
    date: str
    source: str
    usd_per_solved: float = float("nan")


@dataclass(frozen=True, slots=True)
class _File:
    rows: tuple[PublishedRow, ...]


def load_published() -> tuple[PublishedRow, ...]:
    """The rows that envkit ships, by benchmark."""
    text = resources.files("envkit.measure.leaderboard").joinpath("published.toml").read_text("utf-8")
    return decode(_File, tomllib.loads(text), "published.toml").rows
