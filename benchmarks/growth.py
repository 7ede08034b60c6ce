"""How times grow with prompts, groups, turns, adapters and rows: envkit beside TRL and PEFT.

    prompt N     loss and gradient of one group: a prompt of N tokens, 16 answers of 64
    group N      the same with a prompt of 512 tokens and N answers
    turns N      a whole step of 16 episodes of N turns, as in `train.py`
    adapters N   64 answers of 16 tokens to 32 prompts of 20, which share N adapters of rank 4
    waves        256 answers of 64 tokens to 16 prompts of 150, with an adapter: 64, 128 or 256 rows at a
                 time

Nothing here has a bar. ``prompt 1024`` takes more than 24 GB, for TRL's padded rows. Gradients are checked by
`train.py`. ``ONLY``, ``ROUNDS`` and ``DTYPE`` as there; writes ``runs/bench/growth.json`` and ``.md``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # for tiny.py

from side_by_side import Operation, Ratio, compare_each
from train_adapters import adapting
from train_generate import WAVES, waving
from train_learn import learning
from train_shared import ROUNDS, asked, dtype
from train_steps import turning

from envkit.models import DEFAULT_MODEL
from envkit.studies.machine import use_threads
from envkit.studies.provenance import commit

PROMPTS, GROUPS, TURNS, ADAPTERS = (64, 256, 1024), (4, 8, 32), (1, 2, 4), (1, 8, 32)
OPERATIONS: Final[Mapping[str, Operation]] = {
    **{f"prompt {n}": functools.partial(learning, n, checked=False) for n in PROMPTS},
    **{f"group {n}": functools.partial(learning, group=n, checked=False) for n in GROUPS},
    **{f"turns {n}": functools.partial(turning, n) for n in TURNS},
    **{f"adapters {n}": functools.partial(adapting, n) for n in ADAPTERS},
    "waves": waving,
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
    chosen = asked(OPERATIONS)
    facts = {"commit": commit(), "model": DEFAULT_MODEL, "dtype": dtype(), "threads": use_threads()}
    compare_each("growth", chosen, RATIOS, ROUNDS, facts)


if __name__ == "__main__":
    main()
