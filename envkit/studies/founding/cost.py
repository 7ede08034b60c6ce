"""Does an environment of your own train a small model to excel at a fraction of frontier cost?"""

from __future__ import annotations

import math
from typing import Final

from envkit.benchmark.leaderboard_data import cost_of, training_cost
from envkit.benchmark.number_text import dollars, number
from envkit.benchmark.report_data import Row
from envkit.benchmark.tables import Table
from envkit.prices import PriceTable, load_prices
from envkit.studies.founding.cells import SOLVE, Grid, Measured
from envkit.studies.founding.finding import (
    Finding,
    above,
    all_of,
    detectable,
    in_points,
    rate_bars,
    rates_table,
    seeds_sentence,
)

ARMS: Final = ("base", "shots", "r16")
PARTS: Final = (SOLVE,)
CLAIM: Final = (
    "An environment of your own trains a small model to excel at a fraction of frontier cost: it solves more "
    "than its base, and than the base with a better prompt."
)
PUBLISHED: Final = (
    "ART-E: Qwen2.5-14B for $0.85 and o3 for $55.19 per 1,000 runs (OpenPipe, 2025-04), trained for less "
    "than $80.",
    "A preregistered LoRA beat gpt-5.4-mini by 21.5 F1 and never broke even in 100,000 calls (2026-06).",
)


def judge(grid: Grid) -> Finding:
    """See `CLAIM`."""
    over_base, over_prompt = grid.difference("r16", "base"), grid.difference("r16", "shots")
    prices = load_prices()
    found = [each for cell in grid.cells("r16") if (each := cell.measured(SOLVE)) is not None]
    return Finding(
        all_of([above(over_base, 0.0), above(over_prompt, 0.0)]),
        (
            detectable(grid, "r16", "shots"),
            f"Trained minus base: {in_points(over_base)} points; minus the prompt with solved tasks: "
            f"{in_points(over_prompt)}.",
            "No frontier model has played these tasks, so break-even is a bound: the solved tasks after "
            "which training has paid, if the other model solved every task at once and wrote no more than "
            "ours.",
            seeds_sentence(grid, ARMS),
        ),
        (rates_table(grid, ARMS), _table(found, prices)),
        rate_bars(grid, ARMS),
    )


def _table(found: list[Measured], prices: PriceTable) -> Table:
    """Dollars of the trained seeds, beside models with a price per token."""
    lines: list[tuple[str, ...]] = []
    ours, training = math.inf, math.nan
    for each in found:
        cost = cost_of(each.row, each.machine, prices)
        usd, spent = cost.per_solved, training_cost(each.row, each.machine, prices)
        if usd is not None and usd.estimate < ours:
            ours, training = usd.estimate, spent
        name = dollars(math.nan if usd is None else usd.estimate)
        lines.append((each.row.name, name, dollars(spent), cost.basis, ""))
    tokens = _tokens(found[0].row)
    for model, price in sorted(prices.models.items(), key=lambda entry: -entry[1].cost_usd(*tokens)):
        usd = price.cost_usd(*tokens)
        after = training / (usd - ours) if usd > ours else math.inf
        lines.append(
            (
                model,
                f"at least {dollars(usd)}",
                "",
                "our tokens a task",
                number(after, 0) if after < math.inf else "never",
            )
        )
    return Table(
        f"Dollars per solved task, at the prices of {prices.date}",
        ("Model", "Per solved task", "Training", "Paid for", "Break-even after"),
        tuple(lines),
    )


def _tokens(row: Row) -> tuple[int, int]:
    """Prompt and completion tokens that a row needs for a task, on average."""
    samples = max(1, sum(result.samples for result in row.results))
    read = sum(result.prompt_tokens for result in row.results)
    written = sum(result.completion_tokens for result in row.results)
    return round(read / samples), round(written / samples)
