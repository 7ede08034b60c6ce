"""Advantages relative to the mean of a group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envkit.training.learner.advantages import group_advantages, turn_advantages


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_advantages_sum_to_zero_and_keep_reward_differences(rewards: list[float]) -> None:
    advantages = group_advantages(rewards)
    assert advantages.sum() == pytest.approx(0, abs=1e-9)
    assert np.diff(advantages) == pytest.approx(np.diff(rewards), abs=1e-9)


@pytest.mark.parametrize("rewards", [[0.0] * 7, [1.0] * 7, [0.1] * 7])
def test_equal_rewards_give_zero_advantages(rewards: list[float]) -> None:
    assert not group_advantages(rewards).any()


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=4), min_size=1, max_size=8))
def test_a_turns_advantage_is_its_return_minus_the_mean_over_rows_with_that_turn(
    rewards: list[list[float]],
) -> None:
    advantages = turn_advantages(rewards)
    assert [*map(len, advantages)] == [*map(len, rewards)]
    for turn in range(4):
        rows = [row for row, each in enumerate(rewards) if len(each) > turn]
        returns = [sum(rewards[row][turn:]) for row in rows]
        mean = sum(returns) / max(len(rows), 1)
        assert [advantages[row][turn] for row in rows] == pytest.approx([x - mean for x in returns])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_advantages_of_single_turns_equal_those_of_the_group(rewards: list[float]) -> None:
    assert [a for [a] in turn_advantages([[r] for r in rewards])] == group_advantages(rewards).tolist()


def test_advantages_are_not_divided_by_the_standard_deviation() -> None:
    assert group_advantages([1.0, 0.0, 0.0, 0.0]).tolist() == [0.75, -0.25, -0.25, -0.25]


def test_equal_returns_paid_in_other_parts_have_equal_advantages() -> None:
    early, late, wrong = [0.1, 0.2, 0.7], [0.7, 0.2, 0.1], [0.0, 0.0, 0.0]
    first = [advantages[0] for advantages in turn_advantages([early, late, wrong])]
    assert first[0] == first[1] > 0 > first[2]
    assert turn_advantages([early, late])[0][0] == 0
