"""Measure how times grow with prompts, groups, turns, adapters and rows, for envkit, TRL and PEFT.

    prompt N     loss and gradient of one group: a prompt of N tokens, 16 answers of 64
    group N      the same with a prompt of 512 tokens and N answers
    turns N      a whole step of 16 episodes of N turns, as in `train.py`
    adapters N   64 answers of 16 tokens to 32 prompts of 20, which share N adapters of rank 4
    waves        256 answers of 64 tokens to 16 prompts of 150, with an adapter: 64, 128 or 256 rows at a
                 time

There are no bars. ``prompt 1024`` takes more than 24 GB because of TRL's padded rows. `train.py` checks
gradients and explains ``ONLY``, ``ROUNDS`` and ``DTYPE``. Writes ``runs/bench/growth.json`` and ``.md``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))  # for tiny.py

from side_by_side import Operation, Ratio, compare_each
from train_adapters import adapter_ways
from train_generate import WAVES, wave_ways
from train_learn import learner_ways
from train_shared import ROUNDS, dtype, selected_operations
from train_steps import multi_turn_ways

from envkit.models import SMALL_MODEL
from envkit.runs.folder.machine import use_threads
from envkit.runs.folder.provenance import commit

PROMPTS, GROUPS, TURNS, ADAPTERS = (64, 256, 1024), (4, 8, 32), (1, 2, 4), (1, 8, 32)
OPERATIONS: Final[Mapping[str, Operation]] = {
    **{f"prompt {n}": functools.partial(learner_ways, n, checked=False) for n in PROMPTS},
    **{f"group {n}": functools.partial(learner_ways, group=n, checked=False) for n in GROUPS},
    **{f"turns {n}": functools.partial(multi_turn_ways, n) for n in TURNS},
    **{f"adapters {n}": functools.partial(adapter_ways, n) for n in ADAPTERS},
    "waves": wave_ways,
}
RATIOS: Final = {
    **{
        f"{name}, vs TRL": Ratio(name, "TRL", "envkit", None)
        for name in OPERATIONS
        if name.startswith(("prompt", "group", "turns"))
    },
    **{f"adapters {n}, vs base": Ratio(f"adapters {n}", "base", f"{n} of rank 4", None) for n in ADAPTERS},
    **{
        f"adapters {n}, vs one after another": Ratio(
            f"adapters {n}", f"{n} one after another", f"{n} of rank 4", None
        )
        for n in ADAPTERS
    },
    **{
        f"waves of {more}, vs {less}": Ratio("waves", f"{less} rows", f"{more} rows", None)
        for less, more in pairwise(WAVES)
    },
}


def main() -> None:
    chosen = selected_operations(OPERATIONS)
    facts = {"commit": commit(), "model": SMALL_MODEL, "dtype": dtype(), "threads": use_threads()}
    compare_each("growth", chosen, RATIOS, ROUNDS, facts)


if __name__ == "__main__":
    main()
