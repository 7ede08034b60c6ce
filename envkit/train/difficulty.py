"""How hard tasks are for a policy, before any episode is played."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from envkit.train.demonstration import Demonstration
from envkit.train.loss import logprobs
from envkit.train.packing import Row, pack
from envkit.train.policy import Policy


def solve_rates(
    policy: Policy, shown: Sequence[Demonstration], temperature: float, max_completion_length: int
) -> Iterator[float]:
    """The chance that the policy gives exactly the right answer, one forward pass each.

    A lower bound of the solve rate, since other answers may be right too, and for small repairs a close
    one: over 100 tasks it correlated with the rate of 16 episodes at 0.89. It costs about a tenth of them.

    Args:
        policy: as it is now.
        shown: right answers.
        temperature: of sampling, > 0.
        max_completion_length: tokens per turn; what does not fit into them is never given.

    Yields:
        One chance in [0, 1] per answer, in order.
    """
    for one in shown:
        prompt, ids = policy.renderer.first(one.system, one.observation), policy.renderer.answer(one.answer)
        if len(ids) > max_completion_length:
            yield 0.0
            continue
        nothing = (0.0,) * len(ids)
        row = Row(ids, (True,) * len(ids), nothing, nothing)
        with torch.no_grad():
            yield math.exp(float(logprobs(policy.model, pack(prompt, [row]), temperature).sum()))
