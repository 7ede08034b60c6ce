"""Gymnasium environments as envkit environments, in a module that other processes can import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
from gymnasium.spaces import Box, Discrete, Space, Text

from envkit import GymnasiumEnv, Task, wrap

FrozenLake = wrap(
    lambda: gymnasium.make("FrozenLake-v1", is_slippery=False, render_mode="ansi"),
    id="frozen-lake",
    max_turns=20,
    prompt="Walk from S to G, and not into a hole H. Say left, down, right or up.",
    action_names={"left": 0, "down": 1, "right": 2, "up": 3},
    oracle=lambda seed: ["down", "down", "right", "right", "down", "right"],
)


class Sums(gymnasium.Env[str, str]):
    """Asks for a sum, and pays 2 for it, minus 1 for another text."""

    observation_space = Text(99)
    action_space = Text(99)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        one, other = (int(number) for number in self.np_random.integers(10**6, size=2))
        self.number = str(one + other)
        return f"What is {one} + {other}?", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        right = action == self.number
        return ("Right." if right else "Wrong."), 2.0 if right else -1.0, right, False, {}


class SumsEnv(GymnasiumEnv):
    """`Sums`, which is solved from a return of 1 on; two is the most."""

    id: ClassVar[str] = "sums"
    max_turns = 3
    return_range = (0.0, 2.0)
    solved_at = 1.0

    @classmethod
    def make(cls) -> gymnasium.Env[Any, Any]:
        return Sums()

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        env = Sums()
        env.reset(seed=int(str(task.metadata["seed"])))
        return [env.number]


class Numbers(gymnasium.Env[Any, Any]):
    """Observations that are no text, and nothing to render."""

    observation_space: Space[Any] = Box(0.0, 1.0)
    action_space: Space[Any] = Discrete(3, start=2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.random(1), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.np_random.random(1), 0.25 * (action - 2), action == 4, False, {}


class NumbersEnv(GymnasiumEnv):
    """`Numbers`, shown in words."""

    id: ClassVar[str] = "numbers"
    max_turns = 3

    @classmethod
    def make(cls) -> gymnasium.Env[Any, Any]:
        return Numbers()

    def show(self, observation: Any) -> str:
        return f"It is {observation[0]:.2f}."
