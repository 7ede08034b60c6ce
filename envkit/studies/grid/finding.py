"""Findings: what a study's numbers say of its claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from envkit.measure.leaderboard.recipes import Recipe
from envkit.measure.number_text import bounds, number, percent, points, share
from envkit.measure.report.svg_charts import Bar
from envkit.measure.report.tables import Table
from envkit.measure.stats import LEVEL, Interval, cluster_sd, minimum_detectable
from envkit.studies.grid.arms import ARMS
from envkit.studies.grid.cells import CellFolder
from envkit.studies.grid.grid import Grid
from envkit.studies.grid.measurements import SOLVE

HELD: Final = "HELD"
FAILED: Final = "FAILED"
UNDECIDED: Final = "UNDECIDED"


@dataclass(frozen=True, slots=True)
class StudyFinding:
    """What a study has found.

    Args:
        verdict: ``"HELD"`` or ``"FAILED"`` if the intervals clear the margin, else ``"UNDECIDED"``.
        sentences: the numbers that decide, and what they do not say.
        tables: all numbers.
        bars: of the plot, from top to bottom.
        axis: what the bars show.
    """

    verdict: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    bars: tuple[Bar, ...]
    axis: str = "Solve rate in percent, with 95 % intervals"


def above(interval: Interval, margin: float) -> str:
    """Verdict on "at least ``margin``"."""
    if interval.low > margin:
        return HELD
    return FAILED if interval.high < margin else UNDECIDED


def only_if(*conditions: bool, verdict: str) -> str:
    """A verdict that needs conditions to mean anything."""
    return verdict if all(conditions) else UNDECIDED


def all_of(verdicts: Sequence[str]) -> str:
    """Verdict on a claim of several parts: one that fails decides."""
    if FAILED in verdicts:
        return FAILED
    return HELD if {*verdicts} == {HELD} else UNDECIDED


def all_above(compare: Sequence[Callable[[float], Interval]], margin: float) -> str:
    """Verdict on several "at least ``margin``" together.

    HELD if every interval of `LEVEL` is above ``margin``. FAILED if one interval is below it, at a level that
    Bonferroni's correction gives for so many comparisons. Else UNDECIDED.

    Args:
        compare: level -> interval.
        margin: for all.
    """
    if any(each(1 - (1 - LEVEL) / len(compare)).high < margin for each in compare):
        return FAILED
    return HELD if all(each(LEVEL).low > margin for each in compare) else UNDECIDED


def in_points(interval: Interval) -> str:
    """A difference in points with its interval."""
    return f"{points(interval.estimate)} {bounds(interval, signed=True)}"


def rates_table(grid: Grid, arms: Sequence[str], part: str = SOLVE) -> Table:
    """Solve rates: a line per arm."""
    lines: list[tuple[str, ...]] = []
    for arm in arms:
        recipe = grid.recipe(arm, part)
        size, tokens = _shipped(grid.cells(arm)[0])
        lines.append(
            (
                arm,
                ARMS[arm].meaning,
                share(recipe.mean),
                ", ".join(map(percent, recipe.each)) if ARMS[arm].has_seeds else "",
                size,
                tokens,
                *(() if arm == arms[0] else (in_points(grid.difference(arm, arms[0], part)),)),
            )
        )
    head = ("Arm", "What it is", "Solves", "Each seed, %", "Bytes", "Sampled tokens", f"More than {arms[0]}")
    lines = [line if len(line) == len(head) else (*line, "") for line in lines]
    return Table(f"Solve rates, with {100 * LEVEL:g} % intervals", head, tuple(lines), text_columns=2)


def _shipped(cell: CellFolder) -> tuple[str, str]:
    """Bytes of an adapter or a message, and tokens that were sampled for it."""
    made, prompt = cell.made, cell.prompt
    if made is not None:
        return number(made.control.size_bytes, 0), number(made.control.sampled_tokens or 0, 0)
    if prompt is not None:
        return number(len(prompt.system.encode()), 0), number(prompt.sampled_tokens, 0)
    return "", ""


def rate_bars(grid: Grid, arms: Sequence[str], part: str = SOLVE) -> tuple[Bar, ...]:
    """Solve rates as bars."""
    means = [(arm, grid.recipe(arm, part).mean) for arm in arms]
    return tuple(
        Bar(place, arm, 100 * mean.estimate, 100 * mean.low, 100 * mean.high, share(mean))
        for place, (arm, mean) in enumerate(means)
        if mean is not None
    )


def detectable(grid: Grid, arm: str, against: str, part: str = SOLVE, *, margin: float = 0.0) -> str:
    """Say which difference of two arms the tasks of a part could have shown; see `detectable_between`."""
    return detectable_between(grid.recipe(arm, part), grid.recipe(against, part), margin)


def detectable_between(one: Recipe, other: Recipe, margin: float = 0.0) -> str:
    """Say which difference of two recipes their common tasks could have shown.

    Args:
        one, other: what is compared.
        margin: that the difference must be above.
    """
    where = {task: index for index, task in enumerate(other.tasks)}
    common = [index for index, task in enumerate(one.tasks) if task in where]
    mine = np.asarray(one.rates_ST).mean(axis=0)[common]
    theirs = np.asarray(other.rates_ST).mean(axis=0)[[where[one.tasks[index]] for index in common]]
    sources = [one.sources[index] for index in common]
    spread = cluster_sd(mine - theirs, sources)
    if not spread > 0:
        return f"{one.name} and {other.name} do not differ on any task, so what could be seen is not known."
    least = minimum_detectable(len({*sources}), spread)
    said = (
        f"With {len(common)} tasks of {len({*sources})} sources, and seeds aside, a difference of "
        f"{percent(least)} points between {one.name} and {other.name} would be seen in four of five "
        "repetitions"
    )
    if not margin:
        return f"{said}."
    return f"{said}; to be shown to be above {points(margin)} as often, it must be {points(margin + least)}."


def above_scripts(grid: Grid, arm: str, part: str = SOLVE) -> tuple[bool, str]:
    """Tell whether an arm solves more than each script, chance and search, in a sentence too.

    False if no script has played: then nothing shows that the tasks need a model.
    """
    differences = {
        name: grid.difference_from(row, arm, part)
        for name, row in grid.others(part).items()
        if row.origin.kind == "script"
    }
    told = ", ".join(f"{name} {in_points(each)}" for name, each in differences.items())
    is_above = all(each.low > 0 for each in differences.values())
    return bool(differences) and is_above, (
        f"{arm} minus scripts without a model: {told}; unless all are above zero, nothing is decided."
        if differences
        else "No scripts have played these tasks, so nothing is decided."
    )


def seeds_sentence(grid: Grid, arms: Sequence[str], part: str = SOLVE) -> str:
    """Say how many seeds the intervals hold for."""
    counts = {len(grid.rows(arm, part)) for arm in arms if ARMS[arm].has_seeds}
    if not counts:
        return "No arm is trained."
    if max(counts) == 1:
        return "One seed an arm: the intervals say nothing of other seeds."
    listed = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return f"{listed} seeds an arm: the intervals hold for other seeds too, where there are several."
