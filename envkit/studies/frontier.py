"""Does a small trained model beat a far larger one on some of its tasks?"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from envkit.errors import UsageError
from envkit.measure.leaderboard.data import cost_of, training_cost
from envkit.measure.leaderboard.recipes import Recipe, difference_of, recipe_of
from envkit.measure.number_text import NONE, dollars, number, share
from envkit.measure.report.data import Row
from envkit.measure.report.tables import Table
from envkit.measure.stats import holm, permutation_p
from envkit.runtime.prices import load_prices
from envkit.studies.grid.arms import BASE
from envkit.studies.grid.finding import (
    FAILED,
    HELD,
    UNDECIDED,
    StudyFinding,
    above_scripts,
    detectable_between,
    in_points,
    only_if,
    rate_bars,
    rates_table,
    seeds_sentence,
)
from envkit.studies.grid.grid import Grid
from envkit.studies.grid.measurements import FRONTIER

#: The arm and the model that decide; the others are shown beside them.
_TRAINED, _LARGE = "r16", "gpt-4-0613"
ARMS: Final = (BASE, "sft-1x", _TRAINED)
PARTS: Final = (FRONTIER,)
CLAIM: Final = (
    "A small model that is trained on its application beats a far larger one, GPT-4 of June 2023, on at "
    "least one kind of its tasks, of those that come from 20 sources or more."
)
PUBLISHED: Final = (
    "DebugBench (arXiv:2401.04621): GPT-4 and GPT-3.5 pass fewer of its tasks than people, and the open "
    "models of their day fewer still.",
    "ART-E: Qwen2.5-14B above o3 at a sixtieth of its cost (OpenPipe, 2025-04).",
)
#: Fewest sources of a kind of tasks that is compared.
_FEWEST: Final = 20
#: Largest p-value, corrected for all kinds, that shows a difference: with 20 sources, intervals are too
#: narrow for that.
_P: Final = 0.05


def judge(grid: Grid) -> StudyFinding:
    """See `CLAIM`."""
    others = {name: row for name, row in grid.others(FRONTIER).items() if row.origin.kind == "recorded"}
    if _LARGE not in others:
        raise UsageError(f"the recorded answers of {_LARGE} are not graded yet; run the study to grade them")
    ours, theirs = grid.recipe(_TRAINED, FRONTIER), recipe_of(_LARGE, [others[_LARGE]])
    whole = "; ".join(
        f"{arm} minus {name} {in_points(grid.difference_from(row, arm, FRONTIER))}"
        for arm in ARMS
        for name, row in others.items()
    )
    kinds = _kinds(others[_LARGE])
    is_above_scripts, scripts = above_scripts(grid, _TRAINED, FRONTIER)
    return StudyFinding(
        only_if(is_above_scripts, verdict=_verdict(grid, others[_LARGE], kinds)),
        (
            detectable_between(ours, theirs),
            f"On all tasks: {whole} points.",
            scripts,
            f"By kind, {_TRAINED} minus {_LARGE} decides, on kinds with tasks of {_FEWEST} sources or more: "
            f"{len(kinds)} kinds. It holds if the difference on one is above zero, with a p-value of at most "
            f"{_P:g} after Holm's correction for all kinds (swapping whole sources) and for other seeds too, "
            f"and {_TRAINED} solves more of that kind than its base; it fails if the difference on every "
            f"kind is below zero, with a p-value of at most {_P:g} each. {_left_out(others[_LARGE], kinds)}",
            "The others' answers were recorded in 2023, to a prompt of DebugBench's own, and are graded here "
            "like any answer.",
            seeds_sentence(grid, ARMS, FRONTIER),
        ),
        (rates_table(grid, ARMS, FRONTIER), _kinds_table(grid, others, kinds), _cost_table(grid, others)),
        (*rate_bars(grid, ARMS, FRONTIER),),
    )


def _verdict(grid: Grid, row: Row, kinds: Sequence[str]) -> str:
    """One kind is enough to hold; all are needed to fail."""
    compared = [_recipes(grid, row, kind) for kind in kinds]
    differences = [difference_of(ours, theirs) for ours, theirs in compared]
    known = [each for each in differences if each is not None]
    if not known or len(known) < len(kinds):
        return UNDECIDED
    p_values = [_p(ours, theirs) for ours, theirs in compared]
    for kind, (ours, _), difference, p in zip(kinds, compared, known, holm(p_values), strict=True):
        gain = difference_of(ours, _recipes(grid, row, kind, BASE)[0])
        if p <= _P and gain is not None and min(difference.low, gain.low) > 0:
            return HELD
    is_below = (each.high < 0 and p <= _P for each, p in zip(known, p_values, strict=True))
    return FAILED if all(is_below) else UNDECIDED


def _p(ours: Recipe, theirs: Recipe) -> float:
    """p-value of a difference on the tasks that two recipes have in common; seeds are averaged."""
    where = {task: index for index, task in enumerate(theirs.tasks)}
    common = [index for index, task in enumerate(ours.tasks) if task in where]
    mine = np.asarray(ours.rates_ST).mean(axis=0)[common]
    others = np.asarray(theirs.rates_ST).mean(axis=0)[[where[ours.tasks[index]] for index in common]]
    return permutation_p(mine, others, [ours.sources[index] for index in common])


def _kinds(row: Row) -> list[str]:
    """Kinds of tasks that are compared, the most frequent first."""
    sources: defaultdict[str, set[str]] = defaultdict(set)
    for result in row.results:
        sources[result.operator].add(result.source)
    counts = Counter({kind: len(found) for kind, found in sources.items() if kind})
    return [kind for kind, count in counts.most_common() if count >= _FEWEST]


def _left_out(row: Row, kinds: Sequence[str]) -> str:
    """Say which tasks decide nothing."""
    others = Counter(result.operator for result in row.results if result.operator not in kinds)
    return f"Of {len(others)} other kinds, {sum(others.values())} of {len(row.results)} tasks decide nothing."


def _recipes(grid: Grid, row: Row, kind: str, arm: str = _TRAINED) -> tuple[Recipe, Recipe]:
    """An arm and a row on one kind of tasks."""

    def of_kind(whole: Row) -> Row:
        return replace(whole, results=tuple(each for each in whole.results if each.operator == kind))

    return recipe_of(arm, [of_kind(each) for each in grid.rows(arm, FRONTIER)]), recipe_of(
        row.name, [of_kind(row)]
    )


def _kinds_table(grid: Grid, others: Mapping[str, Row], kinds: Sequence[str]) -> Table:
    """Solve rates by kind of task, and the difference that decides."""
    lines: list[tuple[str, ...]] = []
    for kind in kinds:
        ours = [_recipes(grid, others[_LARGE], kind, arm)[0] for arm in ARMS]
        theirs = [_recipes(grid, row, kind)[1] for row in others.values()]
        found = difference_of(*_recipes(grid, others[_LARGE], kind))
        rates = (share(each.mean) for each in (*ours, *theirs))
        tasks = number(len(theirs[0].tasks), 0)
        lines.append((kind, tasks, *rates, NONE if found is None else in_points(found)))
    return Table(
        "Solve rates by kind of bug",
        ("Kind", "Tasks", *ARMS, *others, f"{_TRAINED} minus {_LARGE}"),
        tuple(lines),
    )


def _cost_table(grid: Grid, others: Mapping[str, Row]) -> Table:
    """Dollars for each solved task."""
    prices = load_prices()
    cells = [cell for arm in ARMS for cell in grid.cells(arm)]
    found = [each for cell in cells if (each := cell.measured(FRONTIER)) is not None]
    lines: list[tuple[str, ...]] = []
    # Recorded answers are paid for by the token, on whatever machine.
    recorded = ((row, found[0].machine) for row in others.values())
    for row, machine in (*((each.row, each.machine) for each in found), *recorded):
        cost = cost_of(row, machine, prices)
        usd = math.nan if cost.per_solved is None else cost.per_solved.estimate
        training = training_cost(row, machine, prices) if row.origin.adapter else math.nan
        shown = (dollars(each) if math.isfinite(each) else NONE for each in (usd, training))
        lines.append((row.name, *shown, cost.basis))
    return Table(
        f"Dollars per solved task: hours at the prices of {prices.date}, tokens of recorded answers at those "
        "when their models were sold",
        ("Row", "Per solved task", "Training", "Paid for"),
        tuple(lines),
    )
