"""Gymnasium environments as envkit environments: tasks by seed, and checks made from the reward."""

from __future__ import annotations

import ast
import inspect
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
from gymnasium.spaces import Discrete

from envkit.env import Env
from envkit.env.authored import ActionResult
from envkit.env.checks import check
from envkit.env.grade import Grade
from envkit.errors import ContractError, UsageError
from envkit.runtime.display import Display
from envkit.sandbox import SandboxBackend
from envkit.types import Task

#: Number of tasks of each split, and the seed of the first. Starters are the first ones to train on.
_SPLITS: Mapping[str, tuple[int, int]] = {
    "starter": (6, 0),
    "train": (1000, 0),
    "heldout": (200, 10**6),
    "test": (200, 2 * 10**6),
}


#: Text that a renderer colours, often to show where something is. A model reads brackets.
_COLOURED = re.compile(r"\x1b\[[\d;]+m(.*?)\x1b\[0?m", re.DOTALL)


class GymnasiumEnv(Env):
    """A Gymnasium environment with text observations, or one that can render as text.

    A task is a seed of its ``reset``. The reward is its return (the sum of its rewards), scaled by
    `return_range`. It runs on the host, so `Env.isolation` is ``"external"``.

    A subclass writes `make` and `max_turns`, and `oracle` for an audit. `show` and `read` may be replaced,
    for observations and actions in other forms.
    """

    isolation: ClassVar[str] = "external"
    #: Actions per episode. A subclass sets it, because a number for all would end some episodes too early.
    max_turns = 0
    #: The return that earns nothing, such as that of doing nothing, and the return that earns 1.
    return_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    #: The return from which on a task is solved; by default the one that earns 1.
    solved_at: ClassVar[float | None] = None
    #: Names of actions, for an environment that numbers them.
    action_names: ClassVar[Mapping[str, object]] = {}
    #: What the first observation begins with.
    prompt: ClassVar[str] = ""

    _inner: gymnasium.Env[Any, Any]

    def __init_subclass__(cls) -> None:
        """Check `max_turns` and `return_range`.

        Raises:
            ContractError: the class writes `make` and no `max_turns`, or its range has no width.
        """
        super().__init_subclass__()
        if cls.max_turns < 1 and not getattr(cls.make, "__isabstractmethod__", False):
            raise ContractError(
                f"{cls.__name__} sets no max_turns; expected the number of actions that a task needs, at "
                "most what the environment allows, make().spec.max_episode_steps"
            )
        low, high = cls.return_range
        if not -math.inf < low < high < math.inf:
            raise ContractError(
                f"{cls.__name__}.return_range is {cls.return_range}; expected a lower return and a higher "
                "one, both finite"
            )

    @classmethod
    @abstractmethod
    def make(cls) -> gymnasium.Env[Any, Any]:
        """Make the environment, with ``render_mode="ansi"`` unless it has text observations."""

    @classmethod
    def make_tasks(cls, split: str, *, sandbox: SandboxBackend, display: Display) -> Sequence[Task]:
        if split not in _SPLITS:
            return super().make_tasks(split, sandbox=sandbox, display=display)
        count, first = _SPLITS[split]
        name = "train" if split == "starter" else split
        return [
            Task(f"{name}/{seed}", name, cls.prompt, {}, {"seed": seed})
            for seed in range(first, first + count)
        ]

    def show(self, observation: Any) -> str:
        """The text of an observation: itself, or what the environment renders.

        Raises:
            ContractError: it is no text, and nothing is rendered.
        """
        if isinstance(observation, str):
            return observation
        rendered = self._inner.render() if self._inner.render_mode == "ansi" else None
        if isinstance(rendered, str):
            return _COLOURED.sub(r"[\1]", rendered)
        raise ContractError(
            f"{type(self).__name__}: the observation is a {type(observation).__name__}, and render() gives "
            "no text; make it with render_mode='ansi', or write show(observation)"
        )

    def read(self, action: str) -> Any:
        """The action that a text stands for: one of `action_names`, a Python literal, or the text itself.

        Raises:
            UsageError: it stands for none; the message is the agent's observation.
        """
        space = self._inner.action_space
        text = action.strip()
        if text in self.action_names:
            return self.action_names[text]
        if space.contains(action):  # a space of texts
            return action
        try:
            value = ast.literal_eval(text)
            if space.contains(value):
                return value
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            pass
        known = ", ".join(self.action_names)
        if not known and isinstance(space, Discrete):
            known = f"{space.start} to {space.start + space.n - 1}"
        raise UsageError(f"That is no action. Say one of: {known or space}")

    def setup(self, task: Task) -> str:
        self._inner = self.make()
        self._return = 0.0
        observation, _ = self._inner.reset(seed=int(str(task.metadata["seed"])))
        return "\n\n".join(part for part in (task.prompt, self.show(observation)) if part)

    def apply(self, action: str) -> ActionResult:
        try:
            inner = self.read(action)
        except UsageError as error:
            return ActionResult(str(error))
        observation, reward, terminated, truncated, _ = self._inner.step(inner)
        self._return += float(reward)
        return ActionResult(self.show(observation), done=terminated or truncated)

    def teardown(self) -> None:
        inner: gymnasium.Env[Any, Any] | None = vars(self).pop("_inner", None)
        if inner is not None:  # else it could not be made
            inner.close()

    @check(each_turn=True, required=False)
    def earned(self) -> float:
        """The return, scaled: 0 for the lowest of `return_range`, 1 for the highest."""
        low, high = self.return_range
        return min(max((self._return - low) / (high - low), 0.0), 1.0)

    @check(weight=0, required=True)
    def reached(self) -> Grade:
        """The return is high enough."""
        goal = self.return_range[1] if self.solved_at is None else self.solved_at
        evidence = f"the return is {self._return:g}, expected {goal:g} or more"
        return Grade(score=float(self._return >= goal), evidence=evidence)


def wrap(
    make: Callable[[], gymnasium.Env[Any, Any]],
    *,
    id: str,
    oracle: Callable[[int], Sequence[str]] | None = None,
    **attributes: Any,
) -> type[GymnasiumEnv]:
    """Make an environment class of a Gymnasium environment, in one call.

    ::

        FrozenLake = envkit.wrap(
            lambda: gymnasium.make("FrozenLake-v1", is_slippery=False, render_mode="ansi"),
            id="frozen-lake",
            max_turns=20,
            action_names={"left": 0, "down": 1, "right": 2, "up": 3},
        )

    Args:
        make: makes the environment; see `GymnasiumEnv.make`.
        id: the class's `Env.id`. The class has the same name in capitals, ``FrozenLake`` for
            ``"frozen-lake"``; assign it to that name in a module, so that other processes find it.
        oracle: actions that solve the task of a seed. An audit needs them.
        attributes: others of the class, ``max_turns`` among them; see `GymnasiumEnv` and `envkit.env.Env`.

    Raises:
        ContractError: there is no ``max_turns``, or another attribute is wrong.
    """

    def make_inner(cls: type) -> gymnasium.Env[Any, Any]:
        return make()

    def oracle_of(cls: type, task: Task) -> Sequence[str]:
        if oracle is None:
            raise ContractError(
                f"{cls.__name__} has no oracle; give wrap() one, the actions that solve a seed's task"
            )
        return oracle(int(str(task.metadata["seed"])))

    members: dict[str, Any] = {"id": id, "make": classmethod(make_inner), "oracle": classmethod(oracle_of)}
    # The caller's module, as with `collections.namedtuple`: pickle and certificates look there.
    caller = inspect.currentframe()
    if caller is not None and caller.f_back is not None:
        members["__module__"] = caller.f_back.f_globals["__name__"]
    name = "".join(word.capitalize() for word in id.replace("_", "-").split("-"))
    return type(name, (GymnasiumEnv,), {**members, **attributes})
