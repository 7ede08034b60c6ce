"""Is LoRA on all linear layers better than on attention alone?"""

from __future__ import annotations

from typing import Final

from envkit.studies.founding.cells import SOLVE, Grid
from envkit.studies.founding.finding import (
    Finding,
    above,
    detectable,
    in_points,
    rate_bars,
    rates_table,
    seeds_sentence,
)

ARMS: Final = ("base", "attention", "r8")
PARTS: Final = (SOLVE,)
CLAIM: Final = (
    "LoRA on all linear layers solves at least 5 points more than on attention alone, with as many numbers."
)
PUBLISHED: Final = (
    "Supervised: attention-only is behind at equal size, and LoRA on the MLPs alone does as well as on all "
    "layers (LoRA Without Regret, Thinking Machines, 2025-09).",
    "Contested for hybrid models (arXiv:2604.22127). Under GRPO, no layer idles (arXiv:2605.07366).",
)
_MARGIN: Final = 0.05


def judge(grid: Grid) -> Finding:
    """See `CLAIM`."""
    ahead, gain = grid.difference("r8", "attention"), grid.difference("r8", "base")
    return Finding(
        above(ahead, _MARGIN),
        (
            detectable(grid, "r8", "attention"),
            f"All linear layers minus attention: {in_points(ahead)} points. All linear layers minus base: "
            f"{in_points(gain)}.",
            "Both have the same learning rate.",
            seeds_sentence(grid, ARMS),
        ),
        (rates_table(grid, ARMS),),
        rate_bars(grid, ARMS),
    )
