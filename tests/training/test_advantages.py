"""Advantages compare within a group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envkit.training.advantages import group_advantages, turn_advantages


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_they_sum_to_zero_and_keep_distances(rewards: list[float]) -> None:
    advantages = group_advantages(rewards)
    assert advantages.sum() == pytest.approx(0, abs=1e-9)
    assert np.diff(advantages) == pytest.approx(np.diff(rewards), abs=1e-9)


@pytest.mark.parametrize("rewards", [[0.0] * 7, [1.0] * 7, [0.1] * 7])
def test_a_group_of_equals_has_none(rewards: list[float]) -> None:
    assert not group_advantages(rewards).any()


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=4), min_size=1, max_size=8))
def test_each_turn_is_compared_with_those_who_had_it(rewards: list[list[float]]) -> None:
    advantages = turn_advantages(rewards)
    assert [*map(len, advantages)] == [*map(len, rewards)]
    for turn in range(4):
        there = [row for row, each in enumerate(rewards) if len(each) > turn]
        earned = [sum(rewards[row][turn:]) for row in there]
        mean = sum(earned) / max(len(there), 1)
        assert [advantages[row][turn] for row in there] == pytest.approx([x - mean for x in earned])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_of_one_turn_they_are_the_groups(rewards: list[float]) -> None:
    assert [a for [a] in turn_advantages([[r] for r in rewards])] == group_advantages(rewards).tolist()


def test_no_division_by_the_standard_deviation() -> None:
    assert group_advantages([1.0, 0.0, 0.0, 0.0]).tolist() == [0.75, -0.25, -0.25, -0.25]
