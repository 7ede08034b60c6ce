"""Does RL forget less than supervised training?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from envkit.errors import UsageError
from envkit.measure.number_text import number, percent
from envkit.measure.report.data import Row
from envkit.measure.report.summary import solve_rates
from envkit.measure.report.tables import Table
from envkit.measure.stats import Interval, mean_interval, rank_correlation
from envkit.studies.grid.arms import RL_ARM
from envkit.studies.grid.finding import (
    FAILED,
    HELD,
    UNDECIDED,
    StudyFinding,
    above_scripts,
    detectable,
    in_points,
    only_if,
    rate_bars,
    rates_table,
    seeds_sentence,
)
from envkit.studies.grid.grid import Grid
from envkit.studies.grid.measurements import DISTANCE, SOLVE, Distance

_RL: Final = (RL_ARM, "r8", "r1", "attention", "steering")
#: More known answers than RL's warm start has.
_SFT: Final = ("sft-3x", "sft-6x")
_ALL: Final = (*_RL, "warm", *_SFT)
ARMS: Final = ("base", *_ALL)
PARTS: Final = (SOLVE, DISTANCE)
CLAIM: Final = (
    "After a warm start, RL forgets at most half as much as more supervised training that solves as much."
)
PUBLISHED: Final = (
    "What is forgotten follows the divergence from the base on the new task, and RL goes less far "
    "(RL's Razor, arXiv:2509.04259); supported independently (arXiv:2510.18874).",
)
#: Runs that a correlation needs.
_FEWEST: Final = 12
#: Solve rates that differ by more do not count as equal.
_ALIKE: Final = 0.05


def judge(grid: Grid) -> StudyFinding:
    """See `CLAIM`."""
    goal = _mean_rate(grid, RL_ARM)
    is_above_scripts, scripts = above_scripts(grid, RL_ARM)
    matched = min(_SFT, key=lambda arm: abs(_mean_rate(grid, arm) - goal))
    gap, gain = grid.difference(RL_ARM, matched), grid.gain(RL_ARM, "warm")
    ours, theirs = _forgotten(grid, RL_ARM), _forgotten(grid, matched)
    seeds = sorted(ours.keys() & theirs.keys())
    sources = {seed: _distances(grid, "warm")[seed].sources for seed in seeds}
    halves = [
        mean_interval(
            [mine - other / 2 for mine, other in zip(ours[seed], theirs[seed], strict=True)], sources[seed]
        )
        for seed in seeds
    ]
    lost, risen = ([mean_interval(each[seed], sources[seed]) for seed in seeds] for each in (theirs, ours))
    if halves and all(each.high < 0 for each in halves) and all(each.low > 0 for each in lost):
        verdict = HELD
    elif halves and all(each.low > 0 for each in (*halves, *risen)):
        verdict = FAILED
    else:
        verdict = UNDECIDED
    # A warm start is a part of the run that went on from it.
    trained = [each for arm in (*_RL, *_SFT) for each in _distances(grid, arm).values()]
    rho = rank_correlation([each.kl.estimate for each in trained], [each.rise for each in trained])
    correlation = (
        f"Over {len(trained)} runs, the rank correlation of divergence and rise is {number(rho, 2)}."
        if len(trained) >= _FEWEST
        else f"Divergence and rise are correlated from {_FEWEST} runs on; there are {len(trained)}."
    )
    return StudyFinding(
        only_if(
            gain.low > 0,
            is_above_scripts,
            abs(gap.estimate) <= _ALIKE,
            verdict=verdict,
        ),
        (
            detectable(grid, RL_ARM, matched),
            f"{matched} solves most nearly as much as {RL_ARM}: {RL_ARM} minus {matched} is "
            f"{in_points(gap)} points. An estimate of more than 5 would decide nothing; the interval says "
            f"how unequal the two may be. {RL_ARM} minus its warm start: {in_points(gain)}.",
            scripts,
            f"Rise of the loss on other text by {matched}, above that by the warm start, by seed: "
            f"{_told(lost)}. Unless SFT forgets, the claim cannot hold. SFT begins with the base and learns "
            "from RL's functions too, so its first answers are not those of the warm start.",
            f"Rise by RL: {_told(risen)}; less half of SFT's: {_told(halves)}. The claim needs all of the "
            "latter below zero, and fails if all of both are above.",
            "RL and SFT have learning rates of their own, chosen for what is solved, and take other numbers "
            "of steps: a gentler SFT might forget less.",
            correlation,
            "What is forgotten of other environments is not measured.",
            seeds_sentence(grid, ARMS),
        ),
        (rates_table(grid, ARMS), _table(grid)),
        rate_bars(grid, ARMS),
    )


def _mean_rate(grid: Grid, arm: str) -> float:
    rates = grid.recipe(arm).each
    return sum(rates) / len(rates)


def _told(intervals: Sequence[Interval]) -> str:
    return ", ".join(
        f"{number(each.estimate, 4)} [{number(each.low, 4)}, {number(each.high, 4)}]" for each in intervals
    )


def _forgotten(grid: Grid, arm: str) -> dict[int, list[float]]:
    """By seed: how much worse each passage is predicted than by the warm start of RL, in nats per token.

    Raises:
        UsageError: the passages are others.
    """
    before, after = _distances(grid, "warm"), _distances(grid, arm)
    seeds = before.keys() & after.keys()
    if any(before[seed].sources != after[seed].sources for seed in seeds):
        raise UsageError(f"{arm} and warm were measured on different text; measure both on one machine")
    return {
        seed: [late - early for late, early in zip(after[seed].rises, before[seed].rises, strict=True)]
        for seed in seeds
    }


def _distances(grid: Grid, arm: str) -> dict[int, Distance]:
    """Distances of an arm by seed."""
    return {cell.seed: found for cell in grid.cells(arm) if (found := cell.distance) is not None}


def _table(grid: Grid) -> Table:
    return Table(
        "Each run: what it solves, its divergence from the base, and the rise of the loss on other text",
        ("Arm", "Seed", "Solves, %", "KL, nats a token", "Rise, nats a token"),
        tuple(
            (
                arm,
                str(cell.seed),
                "" if (row := cell.measured(SOLVE)) is None else percent(_rate(row.row)),
                number(found.kl.estimate, 3),
                number(found.rise, 4),
            )
            for arm in _ALL
            for cell in grid.cells(arm)
            if (found := cell.distance) is not None
        ),
    )


def _rate(row: Row) -> float:
    rates = solve_rates(row.results)
    return sum(rates.values()) / len(rates) if rates else math.nan
