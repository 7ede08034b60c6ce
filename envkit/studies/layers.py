"""Is LoRA on all linear layers better than on attention alone?"""

from __future__ import annotations

from typing import Final

from envkit.studies.grid.finding import (
    StudyFinding,
    above,
    above_scripts,
    detectable,
    in_points,
    only_if,
    rate_bars,
    rates_table,
    seeds_sentence,
)
from envkit.studies.grid.grid import Grid
from envkit.studies.grid.measurements import SOLVE

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
#: Largest ratio of sizes that counts as equal.
_EQUAL: Final = 1.05


def judge(grid: Grid) -> StudyFinding:
    """See `CLAIM`."""
    ahead, gain = grid.difference("r8", "attention"), grid.difference("r8", "base")
    sizes = [made.control.size_bytes for arm in ARMS[1:] for cell in grid.cells(arm) if (made := cell.made)]
    is_matched = max(sizes, default=0) <= _EQUAL * min(sizes, default=0)
    is_above_scripts, scripts = above_scripts(grid, "r8")
    return StudyFinding(
        only_if(gain.low > 0, is_matched, is_above_scripts, verdict=above(ahead, _MARGIN)),
        (
            detectable(grid, "r8", "attention", margin=_MARGIN),
            f"All linear layers minus attention: {in_points(ahead)} points. All linear layers minus base: "
            f"{in_points(gain)}.",
            scripts,
            "Both have the same learning rate, and "
            + ("about as many numbers." if is_matched else "not as many numbers, so they decide nothing."),
            seeds_sentence(grid, ARMS),
        ),
        (rates_table(grid, ARMS),),
        rate_bars(grid, ARMS),
    )
