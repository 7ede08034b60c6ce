"""Does an environment of your own train a small model to excel at a fraction of frontier cost?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Final

from envkit.measure.leaderboard.data import cost_of, training_cost
from envkit.measure.number_text import NONE, dollars, number
from envkit.measure.report.data import Row
from envkit.measure.report.tables import Table
from envkit.measure.stats import LEVEL, Interval
from envkit.runtime.prices import PriceTable, load_prices
from envkit.studies.grid.finding import (
    StudyFinding,
    all_above,
    detectable,
    in_points,
    rate_bars,
    rates_table,
    seeds_sentence,
)
from envkit.studies.grid.grid import Grid
from envkit.studies.grid.measurements import SOLVE

ARMS: Final = ("base", "shots", "prompt", "r16", "sft-6x")
PARTS: Final = (SOLVE,)
CLAIM: Final = (
    "An environment of your own makes a small model better: it solves more than its base, than the base "
    "with a better prompt, and than chance and search."
)
PUBLISHED: Final = (
    "ART-E: Qwen2.5-14B for $0.85 and o3 for $55.19 per 1,000 runs (OpenPipe, 2025-04), trained for less "
    "than $80.",
    "A preregistered LoRA beat gpt-5.4-mini by 21.5 F1 and never broke even in 100,000 calls (2026-06).",
)


def judge(grid: Grid) -> StudyFinding:
    """See `CLAIM`."""
    against: dict[str, Callable[[float], Interval]] = {
        "its base": lambda level: grid.difference("r16", "base", level=level),
        "the prompt with solved tasks": lambda level: grid.difference("r16", "shots", level=level),
    }
    searched = grid.difference("prompt", "base")
    [base], prompted = grid.rows("base"), grid.rows("prompt")
    better = sum(not _are_same(row, base) for row in prompted)
    if better:
        against["a prompt that was searched for"] = lambda level: grid.difference(
            "r16", "prompt", level=level
        )
    for name, row in grid.others().items():
        against[name] = lambda level, row=row: grid.difference_from(row, "r16", level=level)
    compared = [f"{name}: {in_points(each(LEVEL))}" for name, each in against.items()]
    found = (
        f"The search found a better prompt with {better} of {len(prompted)} seeds; the prompts of all seeds, "
        f"minus the base: {in_points(searched)}. "
        if better
        else "The search for a prompt found none that is better than the environment's own, so that this arm "
        "is the base. "
    )
    return StudyFinding(
        all_above([*against.values()], 0.0),
        (
            detectable(grid, "r16", "shots"),
            f"Trained minus {'; minus '.join(compared)}.",
            f"Minus SFT on six times the known answers of its warm start, which decides nothing: "
            f"{in_points(grid.difference('r16', 'sft-6x'))}.",
            f"{found}The search takes far fewer episodes than RL; the table has the sampled tokens of both.",
            "No frontier model has played these tasks, so break-even is a bound: training has paid after so "
            "many solved tasks at the latest, if the other model reads and writes as much as ours, or more, "
            "whatever share it solves, and ours costs as much as the upper ends of its intervals. Where the "
            "other might be cheaper, there is no bound.",
            seeds_sentence(grid, ARMS),
        ),
        (rates_table(grid, ARMS), _table(grid, load_prices())),
        rate_bars(grid, ARMS),
    )


def _are_same(one: Row, other: Row) -> bool:
    """True if two rows were asked and answered the same: so were their messages."""
    fields = ("task", "samples", "solved", "prompt_tokens", "completion_tokens")
    mine, theirs = (
        [[getattr(result, field) for field in fields] for result in row.results] for row in (one, other)
    )
    return mine == theirs


def _table(grid: Grid, prices: PriceTable) -> Table:
    """Dollars of what was measured, beside models with a price per token."""
    lines: list[tuple[str, ...]] = []
    upper_ends: list[float] = []
    trainings: list[float] = []
    for arm in ARMS:
        for cell in grid.cells(arm):
            if (measured := cell.measured(SOLVE)) is None:
                continue
            cost = cost_of(measured.row, measured.machine, prices)
            usd = cost.per_solved or Interval(math.nan, math.nan, math.nan, 0)
            training = training_cost(measured.row, measured.machine, prices) if cell.made else math.nan
            if arm == "r16":
                upper_ends.append(usd.high)
                trainings.append(training)
            shown = dollars(training) if math.isfinite(training) else NONE
            lines.append((cell.name, _interval(usd), shown, cost.basis, ""))
    ours, training = mean(upper_ends), mean(trainings)
    tokens = _tokens(grid.rows("r16"))
    for model, price in sorted(prices.models.items(), key=lambda entry: -entry[1].cost_usd(*tokens)):
        usd = price.cost_usd(*tokens)
        after = _after(usd - ours, training)
        lines.append((model, f"at least {dollars(usd)}", "", "our tokens a task", after))
    return Table(
        f"Dollars per solved task, at the prices of {prices.date}; break-even of r16, mean of its seeds",
        ("Model", "Per solved task", "Training", "Paid for", "Break-even after"),
        tuple(lines),
    )


def _interval(usd: Interval) -> str:
    """Dollars with their interval; a dash if nothing is solved."""
    if not math.isfinite(usd.estimate):
        return NONE
    return f"{dollars(usd.estimate)} [{dollars(usd.low)}, {dollars(usd.high)}]"


def _after(saved_usd: float, training_usd: float) -> str:
    """Solved tasks after which training has paid; a dash if that is not known."""
    if not math.isfinite(saved_usd + training_usd):
        return NONE
    return number(training_usd / saved_usd, 0) if saved_usd > 0 else "no bound"


def _tokens(rows: Sequence[Row]) -> tuple[int, int]:
    """Prompt and completion tokens that the rows of an arm need for a task, on average."""
    results = [result for row in rows for result in row.results]
    samples = max(1, sum(result.samples for result in results))
    read = sum(result.prompt_tokens for result in results)
    written = sum(result.completion_tokens for result in results)
    return round(read / samples), round(written / samples)
