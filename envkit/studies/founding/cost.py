"""Does an environment of your own train a small model to excel at a fraction of frontier cost?"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean
from typing import Final

from envkit.benchmark.leaderboard_data import cost_of, training_cost
from envkit.benchmark.number_text import NONE, dollars, number
from envkit.benchmark.report_data import Row
from envkit.benchmark.stats import LEVEL, Interval
from envkit.benchmark.tables import Table
from envkit.prices import PriceTable, load_prices
from envkit.studies.founding.finding import (
    Finding,
    all_above,
    detectable,
    in_points,
    rate_bars,
    rates_table,
    seeds_sentence,
)
from envkit.studies.founding.grid import Grid
from envkit.studies.founding.measurements import SOLVE, Measured

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


def judge(grid: Grid) -> Finding:
    """See `CLAIM`."""
    against: dict[str, Callable[[float], Interval]] = {
        "its base": lambda level: grid.difference("r16", "base", level=level),
        "the prompt with solved tasks": lambda level: grid.difference("r16", "shots", level=level),
        "a prompt that was searched for": lambda level: grid.difference("r16", "prompt", level=level),
    }
    for name, row in grid.others().items():
        against[name] = lambda level, row=row: grid.difference_from(row, "r16", level=level)
    compared = [f"{name}: {in_points(each(LEVEL))}" for name, each in against.items()]
    searched = grid.difference("prompt", "base")
    prices = load_prices()
    found = [each for cell in grid.cells("r16") if (each := cell.measured(SOLVE)) is not None]
    return Finding(
        all_above([*against.values()], 0.0),
        (
            detectable(grid, "r16", "shots"),
            f"Trained minus {'; minus '.join(compared)}.",
            f"Minus SFT on six times the known answers of its warm start, which decides nothing: "
            f"{in_points(grid.difference('r16', 'sft-6x'))}.",
            f"The prompt that was searched for, minus the base: {in_points(searched)}. The search takes far "
            "fewer episodes than RL; the table has the sampled tokens of both.",
            "No frontier model has played these tasks, so break-even is a bound: training has paid after so "
            "many solved tasks at the latest, if the other model reads and writes as much as ours, or more, "
            "whatever share it solves. Where it might be cheaper, there is no bound.",
            seeds_sentence(grid, ARMS),
        ),
        (rates_table(grid, ARMS), _table(found, prices)),
        rate_bars(grid, ARMS),
    )


def _table(found: list[Measured], prices: PriceTable) -> Table:
    """Dollars of the trained seeds, beside models with a price per token."""
    lines: list[tuple[str, ...]] = []
    each_usd: list[float] = []
    each_training: list[float] = []
    for each in found:
        cost = cost_of(each.row, each.machine, prices)
        each_usd.append(math.nan if cost.per_solved is None else cost.per_solved.estimate)
        each_training.append(training_cost(each.row, each.machine, prices))
        lines.append((each.row.name, dollars(each_usd[-1]), dollars(each_training[-1]), cost.basis, ""))
    ours, training = mean(each_usd), mean(each_training)
    tokens = _tokens(found[0].row)
    for model, price in sorted(prices.models.items(), key=lambda entry: -entry[1].cost_usd(*tokens)):
        usd = price.cost_usd(*tokens)
        after = _after(usd - ours, training)
        lines.append((model, f"at least {dollars(usd)}", "", "our tokens a task", after))
    return Table(
        f"Dollars per solved task, at the prices of {prices.date}; break-even with the mean of the seeds",
        ("Model", "Per solved task", "Training", "Paid for", "Break-even after"),
        tuple(lines),
    )


def _after(saved_usd: float, training_usd: float) -> str:
    """Solved tasks after which training has paid; a dash if that is not known."""
    if not math.isfinite(saved_usd + training_usd):
        return NONE
    return number(training_usd / saved_usd, 0) if saved_usd > 0 else "no bound"


def _tokens(row: Row) -> tuple[int, int]:
    """Prompt and completion tokens that a row needs for a task, on average."""
    samples = max(1, sum(result.samples for result in row.results))
    read = sum(result.prompt_tokens for result in row.results)
    written = sum(result.completion_tokens for result in row.results)
    return round(read / samples), round(written / samples)
