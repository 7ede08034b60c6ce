"""Does one adapter hold several unrelated tasks, or does one task cost another?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from envkit.measure.number_text import NONE, percent, share
from envkit.measure.report.svg_charts import Bar
from envkit.measure.report.tables import Table
from envkit.measure.stats import Interval
from envkit.studies.grid.arms import BASE, ENVIRONMENTS, SPECIALISTS
from envkit.studies.grid.finding import (
    HELD,
    UNDECIDED,
    StudyFinding,
    above_scripts,
    all_above,
    detectable,
    in_points,
    rate_bars,
    seeds_sentence,
)
from envkit.studies.grid.grid import Grid
from envkit.studies.grid.measurements import ON

_SPECIALISTS: Final = tuple(arm.name for arm in SPECIALISTS.values())
_OTHERS: Final = ("joint-worst", "merged-linear", "merged-ties")
ARMS: Final = (BASE, *_SPECIALISTS, "joint", *_OTHERS)
PARTS: Final = tuple(ON.values())
CLAIM: Final = (
    "One adapter holds several unrelated tasks: trained on all of three environments, it solves within 5 "
    "points of what a specialist of as many episodes solves, in each."
)
PUBLISHED: Final = (
    "With plain GRPO on several tasks, some dominate (arXiv:2602.05547); tasks interfere though their "
    "gradients are nearly orthogonal, and a brief refresh mends it (arXiv:2606.02398).",
    "Merging RL adapters loses (arXiv:2606.18521) or gains 3.4 to 8.3 points (arXiv:2604.16826).",
)
_MARGIN: Final = 0.05


def judge(grid: Grid) -> StudyFinding:
    """See `CLAIM`."""
    compare = {
        name: partial(grid.difference, "joint", arm.name, ON[name]) for name, arm in SPECIALISTS.items()
    }
    compared = "; ".join(f"{name} {in_points(each())}" for name, each in compare.items())
    learned = [name for name in compare if _has_learned(grid, name)]
    known: list[Callable[[float], Interval]] = [
        lambda level, each=compare[name]: each(level=level) for name in learned
    ]
    verdict = all_above(known, -_MARGIN) if known else UNDECIDED
    return StudyFinding(
        UNDECIDED if verdict == HELD and len(learned) < len(compare) else verdict,
        (
            *(
                f"{name}: {detectable(grid, 'joint', arm.name, ON[name], margin=-_MARGIN)}"
                for name, arm in SPECIALISTS.items()
            ),
            f"Joint minus specialist: {compared} points.",
            learned_sentence(grid),
            *scripts_sentences(grid),
            f"Where the first is not more than {percent(_MARGIN)} points, or a script is not beaten, nothing "
            "is learned that could be lost, and the claim cannot hold.",
            "The joint adapter has as many known answers and as many episodes of each environment as its "
            "specialist, in as many steps, which are so much larger. Merged adapters are made of the "
            "specialists, without training.",
            seeds_sentence(grid, ARMS, PARTS[0]),
        ),
        (rates(grid, ARMS), _differences(grid)),
        bars(grid, (BASE, "joint")),
    )


def all_learned(grid: Grid) -> bool:
    """True if each specialist is above every script in its environment, and above the base by the margin."""
    return all(_has_learned(grid, name) for name in SPECIALISTS)


def _has_learned(grid: Grid, name: str) -> bool:
    is_above_scripts, _ = above_scripts(grid, SPECIALISTS[name].name, ON[name])
    return is_above_scripts and _gain(grid, name).low > _MARGIN


def learned_sentence(grid: Grid) -> str:
    """Say what the specialists have learned."""
    gained = "; ".join(f"{name} {in_points(_gain(grid, name))}" for name in SPECIALISTS)
    return f"Specialist minus base: {gained} points."


def scripts_sentences(grid: Grid) -> list[str]:
    """Compare the specialists with the scripts that have played their environments."""
    return [
        f"{name}: {above_scripts(grid, arm.name, ON[name])[1]}"
        for name, arm in SPECIALISTS.items()
        if any(row.origin.kind == "script" for row in grid.others(ON[name]).values())
    ]


def _gain(grid: Grid, name: str) -> Interval:
    return grid.difference(SPECIALISTS[name].name, BASE, ON[name])


def rates(grid: Grid, arms: tuple[str, ...]) -> Table:
    """Solve rates: a line per arm, a column per environment."""
    return Table(
        "Solve rates in percent, by what was trained and where it was measured",
        ("Arm", *ENVIRONMENTS),
        tuple((arm, *(share(grid.recipe(arm, part).mean) for part in PARTS)) for arm in arms),
    )


def bars(grid: Grid, arms: tuple[str, ...]) -> tuple[Bar, ...]:
    """Bars of each environment: its specialist, and other arms."""
    found: list[Bar] = []
    for name, part in ON.items():
        for bar in rate_bars(grid, (SPECIALISTS[name].name, *arms), part):
            kind = "specialist" if bar.name in _SPECIALISTS else bar.name
            found.append(Bar(bar.series, f"{name}: {kind}", bar.value, bar.low, bar.high, bar.label))
    return tuple(found)


def _differences(grid: Grid) -> Table:
    """Points more or less than each environment's specialist."""

    def cell(arm: str, name: str) -> str:
        special = SPECIALISTS[name].name
        return NONE if arm == special else in_points(grid.difference(arm, special, ON[name]))

    return Table(
        "Points more or less than the environment's specialist",
        ("Arm", *ENVIRONMENTS),
        tuple((arm, *(cell(arm, name) for name in ENVIRONMENTS)) for arm in ARMS),
    )
