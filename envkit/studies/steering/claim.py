"""Are edits of weights and of activations different kinds of control?"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from envkit.measure.leaderboard.recipes import Recipe, recipe_of
from envkit.measure.number_text import number, percent
from envkit.measure.report.tables import Table
from envkit.measure.stats import Interval
from envkit.studies.grid.finding import (
    FAILED,
    HELD,
    UNDECIDED,
    StudyFinding,
    above,
    all_of,
    detectable,
    in_points,
    rate_bars,
    rates_table,
    seeds_sentence,
)
from envkit.studies.grid.grid import Grid, require_difference
from envkit.studies.grid.measurements import DISTANCE, SOLVE

ARMS: Final = ("base", "shots", "steering", "r1", "r16", "vector")
PARTS: Final = (SOLVE, DISTANCE)
CLAIM: Final = (
    "Weights and activations are two kinds of control: a computed steering vector moves the form of answers "
    "by 20 points or more, and what they solve by 5 at most."
)
PUBLISHED: Final = (
    "RL-trained steering vectors match full RL at 0.0016 % of the parameters (arXiv:2505.18706); they gain "
    "a large part of it (arXiv:2509.06608).",
)
_FORM, _SOLVE = 0.20, 0.05


def judge(grid: Grid) -> StudyFinding:
    """See `CLAIM`."""
    forms = {arm: _form(grid, arm) for arm in ARMS}
    form, solve = require_difference(forms["vector"], forms["base"]), grid.difference("vector", "base")
    larger = max(
        form, Interval(-form.estimate, -form.high, -form.low, form.clusters), key=lambda one: one.low
    )
    vector, lora = grid.difference("steering", "base"), grid.difference("r16", "base")
    part = (
        f"{percent(vector.estimate / lora.estimate)} % of it"
        if lora.low > 0
        else "a part of it that cannot be told, because the interval of LoRA's gain includes zero"
    )
    return StudyFinding(
        all_of([above(larger, _FORM), _below(solve)]),
        (
            detectable(grid, "vector", "base"),
            f"The computed vector changes how many answers end before the token limit by {in_points(form)} "
            f"points, and what is solved by {in_points(solve)}.",
            f"One trained vector a layer gains {in_points(vector)} points on the base, LoRA "
            f"{in_points(lora)}: the vectors gain {part}, by their warm starts and RL together.",
            "The form of answers: the share that ends by itself. It may rise or fall. The vector is that of "
            "what is solved, less what fails; its layer and strength are not searched for.",
            seeds_sentence(grid, ARMS),
        ),
        (rates_table(grid, ARMS), _table(grid, forms)),
        rate_bars(grid, ARMS),
    )


def _below(interval: Interval) -> str:
    """Verdict on "changes by `_SOLVE` at most"."""
    if interval.low > -_SOLVE and interval.high < _SOLVE:
        return HELD
    return FAILED if interval.low > _SOLVE or interval.high < -_SOLVE else UNDECIDED


def _form(grid: Grid, arm: str) -> Recipe:
    """Take together how many answers of an arm's seeds end before the token limit."""
    return recipe_of(
        arm,
        [
            replace(
                row,
                results=tuple(
                    replace(result, solved=result.samples - result.cut_off, held_out=0, held_out_failed=0)
                    for result in row.results
                ),
            )
            for row in grid.rows(arm)
        ],
    )


def _table(grid: Grid, forms: dict[str, Recipe]) -> Table:
    lines: list[tuple[str, ...]] = []
    for arm in ARMS:
        distances = [cell.distance for cell in grid.cells(arm)]
        known = [each for each in distances if each is not None]
        mean = forms[arm].mean
        lines.append(
            (
                arm,
                "" if mean is None else percent(mean.estimate),
                ", ".join(number(each.kl.estimate, 3) for each in known),
                ", ".join(number(each.rise, 3) for each in known),
            )
        )
    return Table(
        "Form, divergence from the base on its own episodes, and rise of the loss on other text, by seed",
        ("Arm", "Answers that end, %", "KL, nats a token", "Rise, nats a token"),
        tuple(lines),
    )
