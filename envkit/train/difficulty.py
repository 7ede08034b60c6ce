"""How hard tasks are for a policy, before any episode is played."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence

import torch

from envkit.train.demonstration import Demonstration
from envkit.train.loss import logprobs
from envkit.train.packing import TrainingRow, pack
from envkit.train.policy import Policy


def solve_rates(
    policy: Policy,
    shown: Sequence[Demonstration],
    temperature: float,
    max_completion_length: int,
    stop_strings: Sequence[str] = (),
) -> Iterator[float]:
    """The chance that the policy's answer begins with exactly the right one, one forward pass each.

    For small repairs it goes with the solve rate: over 100 tasks it correlated with the rate of 16 episodes
    at 0.89 after a warm start. It costs about a tenth of them. What follows the right answer is left open,
    for an untrained model hardly ever ends there: over 71 tasks, its chance of giving nothing else correlated
    at 0.33 with the rate, and this one at 0.57.

    Args:
        policy: as it is now.
        shown: right answers.
        temperature: of sampling, > 0.
        max_completion_length: tokens per turn; an answer that does not fit into them is never given.
        stop_strings: what ends a turn; an answer that goes on behind one is never given either.

    Yields:
        One chance in [0, 1] per answer, in order.
    """
    for one in shown:
        prompt, ids = (
            policy.renderer.first(one.system, one.observation),
            policy.renderer.answer(one.answer)[:-1],
        )
        if len(ids) > max_completion_length or any(text in one.answer[:-1] for text in stop_strings):
            yield 0.0
            continue
        nothing = (0.0,) * len(ids)
        row = TrainingRow(ids, (True,) * len(ids), nothing, nothing)
        batch = pack(prompt, [row], policy.device)
        with torch.no_grad():
            found = float(logprobs(policy.model, batch, temperature).sum())
        yield max(math.exp(found), sys.float_info.min)  # 0 is for what cannot be given
