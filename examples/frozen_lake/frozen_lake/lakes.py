"""Gymnasium's FrozenLake, with a map of its own for each seed."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv, generate_random_map

MOVES = {"left": 0, "down": 1, "right": 2, "up": 3}
SIZE, ICE = 6, 0.7


def lake(seed: int) -> FrozenLakeEnv:
    """A lake with one map."""
    return FrozenLakeEnv(render_mode="ansi", desc=generate_random_map(SIZE, ICE, seed), is_slippery=False)


class Lakes(gymnasium.Wrapper[int, int, int, int]):
    """A lake whose seed also draws the map."""

    def __init__(self) -> None:
        super().__init__(lake(0))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        if seed is not None:
            self.env.close()
            self.env = lake(seed)
        return self.env.reset(seed=seed, options=options)


def shortest_path(seed: int) -> list[str]:
    """Moves from start to goal, found by breadth-first search in the environment's own transitions."""
    transitions = lake(seed).P
    waiting, seen = deque([(0, [])]), {0}
    while waiting:
        state, path = waiting.popleft()
        for name, move in MOVES.items():
            [(_, there, reward, ended)] = transitions[state][move]
            if reward:
                return [*path, name]
            if there not in seen and not ended:
                seen.add(there)
                waiting.append((there, [*path, name]))
    raise ValueError(f"no way to the goal of lake {seed}")
