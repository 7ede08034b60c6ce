"""Advantages of groups: pure functions of rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def group_advantages(rewards_G: Sequence[float]) -> NDArray[np.float64]:
    """Reward minus the group's mean, shape (G,).

    No division by the standard deviation: it would weigh nearly solved and nearly hopeless groups
    up (Dr. GRPO, arXiv:2503.20783). All zeros when the group is not mixed.

    >>> group_advantages([1, 0, 0, 1]).tolist()
    [0.5, -0.5, -0.5, 0.5]
    """
    rewards = np.asarray(rewards_G, dtype=np.float64)
    # Rounding in the mean must not make equal rewards look mixed.
    return rewards - rewards.mean() if np.ptp(rewards) > 0 else np.zeros_like(rewards)
