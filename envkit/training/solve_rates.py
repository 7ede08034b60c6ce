"""Estimates of how hard tasks are for a policy, without playing an episode."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence

import torch

from envkit.training.demonstration import Demonstration
from envkit.training.packing import TrainingRow, pack
from envkit.training.policy import Policy


def solve_rates(
    policy: Policy,
    demonstrations: Sequence[Demonstration],
    temperature: float,
    max_completion_length: int,
    stop_strings: Sequence[str] = (),
) -> Iterator[float]:
    """Yield the probability that the policy's answer begins with the correct one, by one forward pass each.

    This predicts the solve rate of small repairs: over 100 tasks it correlated at 0.89 with the rate of 16
    episodes after a warm start, at a tenth of the cost. What follows the correct answer does not count,
    because an untrained model hardly ever stops there: over 71 tasks, the probability of the answer with its
    end of turn correlated at 0.33 with the solve rate, and this one at 0.57.

    Args:
        policy: with its current weights.
        demonstrations: correct answers.
        temperature: of sampling, > 0.
        max_completion_length: tokens per turn; a longer answer has probability 0.
        stop_strings: texts that end a turn; an answer that continues after one has probability 0.

    Yields:
        One probability in [0, 1] per demonstration, in order.
    """
    for demonstration in demonstrations:
        answer = demonstration.answer
        prompt = policy.renderer.first(demonstration.system, demonstration.observation)
        ids = policy.renderer.answer(answer)[:-1]
        if len(ids) > max_completion_length or any(text in answer[:-1] for text in stop_strings):
            yield 0.0
            continue
        zeros = (0.0,) * len(ids)
        row = TrainingRow(ids, (True,) * len(ids), zeros, zeros)
        batch = pack(prompt, [row], policy.device)
        with torch.no_grad():
            logprob = float(policy.logprobs(batch, temperature).sum())
        yield max(math.exp(logprob), sys.float_info.min)  # exactly 0 means impossible
