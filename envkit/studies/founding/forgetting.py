"""Does RL forget less than supervised training?"""

from __future__ import annotations

from typing import Final

from envkit.benchmark.number_text import number, percent
from envkit.benchmark.stats import mean_interval, rank_correlation
from envkit.benchmark.tables import Table
from envkit.studies.founding.cells import DISTANCE, SOLVE, Distance, Grid
from envkit.studies.founding.finding import (
    FAILED,
    HELD,
    UNDECIDED,
    Finding,
    detectable,
    in_points,
    rate_bars,
    rates_table,
    seeds_sentence,
)

_RL: Final = ("r16", "r8", "r1", "attention", "steering")
_SFT: Final = ("sft-24", "sft-60", "sft-240")
ARMS: Final = ("base", *_RL, *_SFT)
PARTS: Final = (SOLVE, DISTANCE)
CLAIM: Final = "RL forgets at most half as much as supervised training that solves as much."
PUBLISHED: Final = (
    "What is forgotten follows the divergence from the base on the new task, and RL goes less far "
    "(RL's Razor, arXiv:2509.04259); supported independently (arXiv:2510.18874).",
)
#: Runs that a correlation needs.
_FEWEST: Final = 12


def judge(grid: Grid) -> Finding:
    """See `CLAIM`."""
    reached = grid.recipe("r16").each
    goal = sum(reached) / len(reached)
    matched = min(_SFT, key=lambda arm: abs(sum(grid.recipe(arm).each) / len(grid.recipe(arm).each) - goal))
    gap = grid.difference("r16", matched)
    pairs = list(zip(_distances(grid, "r16"), _distances(grid, matched), strict=False))
    halves = [
        mean_interval([mine - theirs / 2 for mine, theirs in zip(a.rises, b.rises, strict=True)], a.sources)
        for a, b in pairs
    ]
    if halves and all(each.high < 0 for each in halves):
        verdict = HELD
    elif halves and all(each.low > 0 for each in halves):
        verdict = FAILED
    else:
        verdict = UNDECIDED
    trained = [each for arm in (*_RL, *_SFT) for each in _distances(grid, arm)]
    rho = rank_correlation([each.kl.estimate for each in trained], [each.rise for each in trained])
    correlation = (
        f"Over {len(trained)} runs, the rank correlation of divergence and rise is {number(rho, 2)}."
        if len(trained) >= _FEWEST
        else f"Divergence and rise are correlated from {_FEWEST} runs on; there are {len(trained)}."
    )
    return Finding(
        verdict,
        (
            detectable(grid, "r16", matched),
            f"{matched} solves most nearly as much as r16: r16 minus {matched} is {in_points(gap)} points.",
            "Rise of the loss on other text, of RL less half of SFT's, by seed: "
            + ", ".join(
                f"{number(each.estimate, 4)} [{number(each.low, 4)}, {number(each.high, 4)}]"
                for each in halves
            )
            + ". The claim needs all below zero.",
            correlation,
            seeds_sentence(grid, ARMS),
        ),
        (rates_table(grid, ARMS), _table(grid)),
        rate_bars(grid, ARMS),
    )


def _distances(grid: Grid, arm: str) -> list[Distance]:
    return [found for cell in grid.cells(arm) if (found := cell.distance) is not None]


def _table(grid: Grid) -> Table:
    return Table(
        "Each run: what it solves, its divergence from the base, and the rise of the loss on other text",
        ("Arm", "Seed", "Solves, %", "KL, nats a token", "Rise, nats a token"),
        tuple(
            (
                arm,
                str(seed),
                percent(grid.recipe(arm).each[seed]),
                number(found.kl.estimate, 3),
                number(found.rise, 4),
            )
            for arm in (*_RL, *_SFT)
            for seed, found in enumerate(_distances(grid, arm))
        ),
    )
