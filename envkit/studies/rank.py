"""Does LoRA put what it learns into few parameters?"""

from __future__ import annotations

from typing import Final

from envkit.studies.grid.finding import (
    FAILED,
    UNDECIDED,
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

ARMS: Final = ("base", "r1", "r16", "full")
PARTS: Final = (SOLVE,)
CLAIM: Final = (
    "LoRA puts what it learns into few parameters: rank 1 solves within 5 points of full fine-tuning."
)
PUBLISHED: Final = (
    "13 parameters reach 91 % on GSM8K with a model of 7 to 8 billion (arXiv:2602.04118); rank 1 on "
    "Qwen3-0.6B stayed below full fine-tuning in the same paper.",
)
_MARGIN: Final = 0.05


def judge(grid: Grid) -> StudyFinding:
    """See `CLAIM`."""
    behind, gain = grid.difference("r1", "full"), grid.difference("full", "base")
    is_above_scripts, scripts = above_scripts(grid, "full")
    # A better learning rate of full fine-tuning could only move rank 1 further behind it.
    verdict = FAILED if above(behind, -_MARGIN) == FAILED else UNDECIDED
    return StudyFinding(
        only_if(gain.low > _MARGIN, is_above_scripts, verdict=verdict),
        (
            detectable(grid, "r1", "full", margin=-_MARGIN),
            f"Rank 1 minus full fine-tuning: {in_points(behind)} points. Full fine-tuning minus base: "
            f"{in_points(gain)}; unless that is more than 5 points, there is nothing to be within.",
            scripts,
            f"Rank 1 minus rank 16: {in_points(grid.difference('r1', 'r16'))} points.",
            "Full fine-tuning changes all linear layers but the head, not embeddings and norms. Its learning "
            "rate is a tenth of LoRA's, as is usual (LoRA Without Regret, 2025), and was not searched for: a "
            "better one could only add to what it solves. So the claim can fail here, but cannot hold.",
            seeds_sentence(grid, ARMS),
        ),
        (rates_table(grid, ARMS),),
        rate_bars(grid, ARMS),
    )
