"""Advantages of groups: pure functions of rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def group_advantages(rewards_G: Sequence[float]) -> NDArray[np.float64]:
    """Reward minus the group's mean, shape (G,).

    No division by the standard deviation: it would give nearly solved and nearly hopeless groups more
    weight (Dr. GRPO, arXiv:2503.20783). All zeros when the group is not mixed.

    >>> group_advantages([1, 0, 0, 1]).tolist()
    [0.5, -0.5, -0.5, 0.5]
    """
    # Rounded, because equal returns that were paid in different parts must not differ by their rounding.
    rewards = np.round(np.asarray(rewards_G, dtype=np.float64), 12)
    # A rounded mean must not give equal rewards an advantage.
    return rewards - rewards.mean() if np.ptp(rewards) > 0 else np.zeros_like(rewards)


def turn_advantages(rewards_GT: Sequence[Sequence[float]]) -> list[list[float]]:
    """Reward to go of each turn, minus its mean over the episodes that had that turn.

    An episode that ended early does not count in the mean of turns that it did not play.

    Args:
        rewards_GT: rewards of each episode, turn by turn; episodes may differ in length.

    >>> turn_advantages([[1.0], [0.0, 1.0], [0.0, 0.0]])
    [[0.33333333333333337], [0.33333333333333337, 0.5], [-0.6666666666666666, -0.5]]
    """
    to_go = [np.cumsum(rewards[::-1])[::-1] for rewards in rewards_GT]
    advantages: list[list[float]] = [[] for _ in rewards_GT]
    for turn in range(max(map(len, rewards_GT))):
        rows = [row for row, rewards in enumerate(to_go) if len(rewards) > turn]
        for row, advantage in zip(rows, group_advantages([to_go[row][turn] for row in rows]), strict=True):
            advantages[row].append(float(advantage))
    return advantages
