"""The data that flows through envkit: tasks, turns, trajectories, verdicts. Frozen, without behaviour."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, TypeAlias, TypedDict

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


class Verdict(enum.StrEnum):
    """The result of grading one candidate."""

    PASS = "PASS"
    FAIL = "FAIL"
    #: The candidate tried to change something that it must not touch.
    TAMPERED = "TAMPERED"
    #: The machinery broke. Never a reward.
    INFRA = "INFRA"


class Outcome(enum.StrEnum):
    """The result of an episode."""

    SOLVED = "solved"
    FAILED = "failed"
    #: Broken machinery: has no reward and is excluded from every statistic, but is counted.
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Task:
    """One problem an environment can pose.

    `envkit.env.Env` takes what a task file keeps: in ``metadata`` and ``hidden``, these are texts, finite
    numbers, bools, ``None``, lists, and dicts with texts as keys.

    Args:
        id: unique within its file, stable across machines.
        split: ``"train"``, ``"heldout"`` to choose by, or ``"test"`` to report on.
        prompt: what the agent is asked, plain text.
        files: workspace-relative POSIX path -> text, or bytes for a binary file.
        metadata: public facts (package, function, operator ...); ``metadata["source"]`` names the
            statistical cluster: what the task was made from, such as a function.
        hidden: data that only the grader on the host may know. It is never written into a sandbox,
            never part of an observation, and left out of ``repr``.
    """

    id: str
    split: str
    prompt: str
    files: Mapping[str, str | bytes]
    metadata: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    hidden: Mapping[str, JSON] = field(default_factory=dict[str, JSON], repr=False)

    @property
    def source(self) -> str:
        """The cluster for statistics: tasks made from one function are not independent."""
        return str(self.metadata.get("source", self.id))

    @property
    def chars(self) -> int:
        """Length of prompt and text files together, in characters."""
        texts = (content for content in self.files.values() if isinstance(content, str))
        return len(self.prompt) + sum(map(len, texts))


class ResetInfo(TypedDict):
    """The ``info`` of `Env.reset`.

    Args:
        task: the task's id.
        split: the task's split.
    """

    task: str
    split: str


class StepInfo(TypedDict):
    """The ``info`` of `Env.step`. Only the last step of an episode has the keys after ``rewards``.

    Args:
        task: the task's id.
        turn: number of the turn, from 1.
        rewards: source -> its part of this step's reward: a check's name, or one of the others in
            `envkit.env`; absent if nothing could be earned.
        scores: check name -> score in [0, 1].
        solved: the task is solved.
        verdict: the worst `Verdict` among the checks, as text.
        evidence: check name -> what it found. Never show this to an agent: it may hold hidden inputs.
        weaknesses: check name -> why its verdict proves less than a split oracle's; absent if there are none.
        held_out: held-out check -> score in [0, 1]; absent if none ran.
    """

    task: str
    turn: int
    rewards: NotRequired[dict[str, float]]
    scores: NotRequired[dict[str, float]]
    solved: NotRequired[bool]
    verdict: NotRequired[str]
    evidence: NotRequired[dict[str, str]]
    weaknesses: NotRequired[dict[str, str]]
    held_out: NotRequired[dict[str, float]]


@dataclass(frozen=True, slots=True)
class EpisodeKey:
    """Addresses one episode; every random draw in it is a function of this key.

    Args:
        seed: the run's seed.
        step: the training step or evaluation round.
        group: index of the group (one task visit) within the step.
        row: index of the episode within its group.
        task: the task's id.
    """

    seed: int
    step: int
    group: int
    row: int
    task: str

    @property
    def visit(self) -> tuple[int, int, int]:
        """The part of the key that a group shares. Hidden inputs are drawn from it."""
        return (self.seed, self.step, self.group)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The exact tokens of one turn, as the engine consumed and sampled them.

    Args:
        prompt_ids: ids appended to the session before sampling (observation and template). Only the ids that
            are new in this turn, not the whole prompt.
        completion_ids: ids sampled, the end-of-turn id included when it was sampled.
        logprobs: natural-log probability of each sampled id, shape ``(len(completion_ids),)``,
            under the sampling distribution (after temperature).
        kept: number of the session's earlier ids that precede ``prompt_ids``; ``None`` for all of them. If it
            is fewer, the trajectory branches: this turn and later ones do not see the ids left out.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of one turn.

    Args:
        prompt_tokens: tokens read, 0 if the agent has none.
        completion_tokens: tokens written.
        seconds: wall time of the request, in seconds.
        cached_tokens: the part of ``prompt_tokens`` that a provider had in its cache.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of an agent.

    Args:
        text: the action.
        tokens: exact tokens; ``None`` for agents that have none (scripts, people, APIs).
        usage: cost of the turn.
        stop: why writing ended: ``"stop"`` (end of turn, or a stop string) or ``"length"`` (token budget).
    """

    text: str
    tokens: Tokens | None = None
    usage: Usage = Usage()
    stop: str = "stop"


def repeated_ids(tasks: Iterable[Task]) -> str:
    """The ids that several of the tasks have, for a message; empty if each has its own."""
    counted = Counter(task.id for task in tasks)
    return f"{', '.join(repr(name) for name, count in counted.items() if count > 1):.200}"


def total_reward(rewards: Iterable[float]) -> float:
    """Sum of an episode's rewards, without the rounding of parts that were paid turn by turn.

    >>> 0.1 + 0.2, total_reward([0.1, 0.2])
    (0.30000000000000004, 0.3)
    """
    return round(math.fsum(rewards), 12)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One turn of a trajectory: the observation, the agent's turn and the reward."""

    observation: str
    turn: Turn
    reward: float


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One finished episode.

    Args:
        key: address of the episode.
        env: the environment's id.
        agent: the agent's name.
        steps: the turns, oldest first.
        outcome: solved, failed or void.
        scores: check name -> score in [0, 1].
        info: evidence and notes for people: verdict, ``"rewards"`` summed by source as in `StepInfo`, error
            of a void.
    """

    key: EpisodeKey
    env: str
    agent: str
    steps: tuple[StepRecord, ...]
    outcome: Outcome
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    info: Mapping[str, JSON] = field(default_factory=dict[str, JSON])

    @property
    def reward(self) -> float:
        """Sum of the turns' rewards, in `Env.reward_range`; 0.0 for a void: drop it, do not average it."""
        if self.outcome is Outcome.VOID:
            return 0.0
        return total_reward([step.reward for step in self.steps])

    @property
    def solved(self) -> bool:
        """True if the episode ended with its task solved."""
        return self.outcome is Outcome.SOLVED
