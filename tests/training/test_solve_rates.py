"""Estimated solve rates are the probability of sampling exactly the right answer."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from envkit.models import ModelRef
from envkit.training.demonstration import Demonstration
from envkit.training.solve_rates import solve_rates


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_rate_is_the_product_of_the_tokens_probabilities(ref: ModelRef, temperature: float) -> None:
    policy = tiny.policy(ref)  # a new adapter does not change the model
    demonstrations = [
        Demonstration("Speak.", "Say a.", "a"),
        Demonstration("Speak.", "Say b, then c.", "b c"),
    ]
    model = tiny.plain(ref)
    rates = solve_rates(policy, demonstrations, temperature, 20)
    for rate, one in zip(rates, demonstrations, strict=True):
        prompt = policy.renderer.first(one.system, one.observation)
        *ids, _ = policy.renderer.answer(one.answer)  # without the end token: the completion may continue
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        chosen = torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(ids)[:, None])
        assert math.log(rate) == pytest.approx(float(chosen.sum()), rel=1e-4)


def test_an_answer_longer_than_the_token_budget_has_rate_zero(ref: ModelRef) -> None:
    policy = tiny.policy(ref)
    demonstrations, length = (
        [Demonstration("Speak.", "Say it.", "a b c")],
        len(policy.renderer.answer("a b c")) - 1,
    )
    for max_tokens, possible in ((length, True), (length - 1, False)):
        assert [rate > 0 for rate in solve_rates(policy, demonstrations, 1.0, max_tokens)] == [possible]


@pytest.mark.parametrize(("stops", "possible"), [(("c",), True), ((" ", "x"), False), (("a b c",), True)])
def test_an_answer_cut_off_by_a_stop_string_has_rate_zero(
    ref: ModelRef, stops: tuple[str, ...], possible: bool
) -> None:
    demonstrations = [Demonstration("Speak.", "Say it.", "a b c")]
    assert [rate > 0 for rate in solve_rates(tiny.policy(ref), demonstrations, 1.0, 20, stops)] == [possible]
