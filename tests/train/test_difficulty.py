"""Estimated solve rates are the chance of drawing exactly the right answer."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from envkit.models import ModelRef
from envkit.train.difficulty import solve_rates


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_rate_is_the_product_of_the_tokens_probabilities(ref: ModelRef, temperature: float) -> None:
    policy = tiny.policy(ref)  # a new adapter, which changes nothing
    examples = [("Say a.", "a"), ("Say b, then c.", "b c")]
    model = tiny.plain(ref)
    for rate, (observation, answer) in zip(solve_rates(policy, examples, temperature), examples, strict=True):
        prompt, ids = policy.renderer.first(observation), policy.renderer.answer(answer)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        chosen = torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(ids)[:, None])
        assert math.log(rate) == pytest.approx(float(chosen.sum()), rel=1e-4)
