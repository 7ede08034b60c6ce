"""Define the records that an environment's author returns: action results, exploits, variants, baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from envkit.errors import ContractError
from envkit.sandbox import SandboxBackend
from envkit.types import Task


@dataclass(frozen=True, slots=True)
class ActionResult:
    """The result of one action.

    Args:
        observation: what the agent sees next.
        done: the action ended the episode (the agent submitted or gave up).
        reward: what the action itself earned, beside the checks; see `Env.reward_range`.
    """

    observation: str
    done: bool = False
    reward: float = 0.0


@dataclass(frozen=True, slots=True)
class Exploit:
    """An attempt to win a task without solving it. It must earn nothing.

    Args:
        name: what it does, unique.
        actions: its episode; the last action is repeated until the episode ends.
        inapplicable: why it cannot be tried on this task; its actions are then not played.

    Raises:
        ContractError: its actions are no list of texts, or empty.
    """

    name: str
    actions: tuple[str, ...]
    inapplicable: str = ""

    def __post_init__(self) -> None:
        if not self.inapplicable:
            require_actions(self.actions, f"exploit {self.name!r}")


@dataclass(frozen=True, slots=True)
class Variant:
    """A solution that is known to be right or wrong, to measure how often verdicts are wrong.

    Args:
        kind: how it was made, such as "another mutation"; rates are counted by kind.
        actions: its episode; the last action is repeated until the episode ends.
        is_right: True if it solves the task.

    Raises:
        ContractError: its actions are no list of texts, or empty.
    """

    kind: str
    actions: tuple[str, ...]
    is_right: bool

    def __post_init__(self) -> None:
        require_actions(self.actions, f"variant {self.kind!r}")


@dataclass(frozen=True, slots=True)
class Baseline:
    """A way to play without a model. A trained model should beat all of an environment's baselines.

    Args:
        name: name of its row in reports.
        description: a few words for reports.
        actions: returns the actions of an episode, at least one, for a task, a seed, and a backend whose
            sandboxes may run programs. It must use only what an agent sees of the task. The last action is
            repeated until the episode ends.
        is_random: True if the actions depend on the seed, so that several episodes of a task differ.
    """

    name: str
    description: str
    actions: Callable[[Task, int, SandboxBackend], Sequence[str]]
    is_random: bool = False


@dataclass(frozen=True, slots=True)
class ImportedTasks:
    """Tasks read from the files of a published benchmark.

    Args:
        tasks: its items, as tasks of the environment that read them.
        recorded: model name -> task id -> the model's published outputs, turn by turn.
        left_out: reason why items became no tasks -> number of items.
    """

    tasks: tuple[Task, ...]
    recorded: Mapping[str, Mapping[str, tuple[str, ...]]] = field(
        default_factory=dict[str, Mapping[str, tuple[str, ...]]]
    )
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])


def require_actions(found: object, whose: str) -> tuple[str, ...]:
    """An episode's actions as an author gave them, at least one.

    Args:
        found: what the author gave.
        whose: what gave it, for the message.

    Raises:
        ContractError: no list of texts. A text alone would be played letter by letter.
    """
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise ContractError(f"{whose} has actions {found!r:.60}; expected a list of texts")
    actions = (*cast("Sequence[object]", found),)
    if wrong := [action for action in actions if not isinstance(action, str)]:
        raise ContractError(f"{whose} has the action {wrong[0]!r:.60}; expected a text")
    if not actions:
        raise ContractError(f"{whose} has no actions; expected at least one")
    return cast("tuple[str, ...]", actions)
