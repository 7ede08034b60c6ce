"""Estimated solve rates are the chance of beginning with exactly the right answer."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from envkit.models import ModelRef
from envkit.training.demonstration import Demonstration
from envkit.training.difficulty import solve_rates


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_rate_is_the_product_of_the_tokens_probabilities(ref: ModelRef, temperature: float) -> None:
    policy = tiny.policy(ref)  # a new adapter, which changes nothing
    shown = [Demonstration("Speak.", "Say a.", "a"), Demonstration("Speak.", "Say b, then c.", "b c")]
    model = tiny.plain(ref)
    rates = solve_rates(policy, shown, temperature, 20)
    for rate, one in zip(rates, shown, strict=True):
        prompt = policy.renderer.first(one.system, one.observation)
        *ids, _ = policy.renderer.answer(one.answer)  # it may go on
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        chosen = torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(ids)[:, None])
        assert math.log(rate) == pytest.approx(float(chosen.sum()), rel=1e-4)


def test_what_does_not_fit_is_never_given(ref: ModelRef) -> None:
    policy = tiny.policy(ref)
    shown, length = [Demonstration("Speak.", "Say it.", "a b c")], len(policy.renderer.answer("a b c")) - 1
    for room, possible in ((length, True), (length - 1, False)):
        assert [rate > 0 for rate in solve_rates(policy, shown, 1.0, room)] == [possible]


@pytest.mark.parametrize(("stops", "possible"), [(("c",), True), ((" ", "x"), False), (("a b c",), True)])
def test_what_a_stop_string_cuts_off_is_never_given(
    ref: ModelRef, stops: tuple[str, ...], possible: bool
) -> None:
    shown = [Demonstration("Speak.", "Say it.", "a b c")]
    assert [rate > 0 for rate in solve_rates(tiny.policy(ref), shown, 1.0, 20, stops)] == [possible]
