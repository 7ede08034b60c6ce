"""Random draws depend on their key alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from envkit.engine.protocol import Sampling, uniforms


def test_the_first_draws_do_not_depend_on_their_number() -> None:
    assert uniforms((3, 1, 4), 50)[:7].tolist() == uniforms((3, 1, 4), 7).tolist()


@pytest.mark.parametrize(
    "other", [(5, 7), (7, 5, 1), (5, 7, 1, 0), (5 + (7 << 32), 1), (-5, 7, 1), (5 + (1 << 32), 7, 1)]
)
def test_different_keys_give_different_draws(other: tuple[int, ...]) -> None:
    assert uniforms(other, 4).tolist() != uniforms((5, 7, 1), 4).tolist()


def test_draws_are_uniform_over_keys() -> None:
    draws = np.array([uniforms((0, step, row), 1)[0] for step in range(40) for row in range(50)])
    assert ((draws >= 0) & (draws < 1)).all()
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001


@pytest.mark.parametrize(("temperature", "tokens"), [(-0.1, 1), (math.nan, 1), (math.inf, 1), (1.0, 0)])
def test_sampling_out_of_range_is_refused(temperature: float, tokens: int) -> None:
    with pytest.raises(ValueError, match="expected a finite temperature >= 0 and max_new_tokens >= 1"):
        Sampling(temperature, tokens)


@pytest.mark.parametrize("top_p", [0.0, 1.1, math.nan])
def test_truncation_out_of_range_is_refused(top_p: float) -> None:
    with pytest.raises(ValueError, match="expected top_p above 0 and at most 1"):
        Sampling(top_p=top_p)
