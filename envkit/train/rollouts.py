"""Collecting rollouts: pick the tasks of one step and play a group of episodes of each."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, final

from envkit.agents.local import LocalAgent
from envkit.engine.protocol import Sampling
from envkit.errors import TrainingError
from envkit.rollout import Rollouts
from envkit.store import Journal, trajectory_to_json
from envkit.train.config import TrainConfig
from envkit.train.curriculum import Curriculum
from envkit.train.policy import Policy
from envkit.types import EpisodeKey, Outcome, Task, Trajectory


@dataclass(frozen=True, slots=True)
class StepRollouts:
    """The episodes of one step, and what they say before anything is learned.

    Args:
        groups: group by group.
        seconds: wall time, or its share of the wall time of all that were played together.
    """

    groups: list[list[Trajectory]]
    seconds: float

    def valid(self) -> list[Trajectory]:
        """Those that are not void."""
        return [t for group in self.groups for t in group if t.outcome is not Outcome.VOID]

    def rejected(self) -> list[bool]:
        """Whether held-out checks reject most solved episodes of a group, of each where they were asked.

        Episodes of one group go the same way, so that many of them say no more than a few.
        """
        found: list[bool] = []
        for group in self.groups:
            told = [cast("Mapping[str, float]", t.info.get("held_out", {})) for t in group]
            agreed = [min(scores.values()) == 1 for scores in told if scores]
            if agreed:
                found.append(agreed.count(False) > len(agreed) / 2)
        return found

    def sampled_logprobs(self) -> list[float]:
        """Of all tokens of the valid ones."""
        steps = [step for t in self.valid() for step in t.steps]
        return [each for step in steps if step.turn.tokens for each in step.turn.tokens.logprobs]


@final
class RolloutCollector:
    """Picks tasks, plays a group of episodes of each, and logs every one.

    Args:
        policy: plays.
        tasks: train tasks; evaluation-only ones are refused.
        rollouts: plays the episodes.
        config: hyperparameters.
        episodes: journal that every episode is appended to before its gradient is used.
        estimates: solve rates before training, by task id; see `Curriculum`.

    Raises:
        TrainingError: a task is not for training.
    """

    def __init__(
        self,
        policy: Policy,
        tasks: Sequence[Task],
        rollouts: Rollouts,
        config: TrainConfig,
        episodes: Journal,
        estimates: Mapping[str, float] | None = None,
    ) -> None:
        require_trainable(tasks)
        self.policy, self.rollouts, self.config, self._episodes = policy, rollouts, config, episodes
        self.curriculum = Curriculum(tasks, config.seed, estimates)

    def collect(self, step: int) -> StepRollouts:
        """Play one group per picked task with the weights as they are now."""
        return collect_all([self], step)[0]

    def episode_keys(self, step: int) -> list[EpisodeKey]:
        """The episodes of a step, group by group."""
        config = self.config
        return [
            EpisodeKey(config.seed, step, group, row, task)
            for group, task in enumerate(self.curriculum.pick(step, config.groups_per_step))
            for row in range(config.num_generations)
        ]

    def record(self, played: Sequence[Trajectory], seconds: float) -> StepRollouts:
        """Log what was dealt and is played now, and learn how hard its tasks are."""
        size = self.config.num_generations
        groups = [[*played[start : start + size]] for start in range(0, len(played), size)]
        for group in groups:
            for trajectory in group:
                self._episodes.append({"phase": "rl", **trajectory_to_json(trajectory)})
            valid, key = [t for t in group if t.outcome is not Outcome.VOID], group[0].key
            self.curriculum.record(key.step, key.task, sum(t.solved for t in valid), len(valid))
        self._episodes.sync()  # logged before use
        return StepRollouts(groups, seconds)


def collect_all(collectors: Sequence[RolloutCollector], step: int) -> list[StepRollouts]:
    """Play one step of each, all episodes in one batch, with the weights as they are now.

    Args:
        collectors: of siblings; their configurations differ in seeds only, all of them distinct. The first
            one's rollouts play, and know the tasks of all.
        step: the same for all.
    """
    started = time.monotonic()
    first, *others = collectors
    config, engine = first.config, first.policy.engine
    first.policy.sync(*(other.policy for other in others))
    agent = LocalAgent(
        "policy",
        engine,
        first.policy.renderer,
        Sampling(config.temperature, config.max_completion_length, stop_strings=config.stop_strings),
        config.max_turns,
        adapter={each.config.seed: number for number, each in enumerate(collectors)},
        max_context_length=config.max_context_length,
    )
    hands = [each.episode_keys(step) for each in collectors]
    every = config.alarm_steps
    is_asked = every > 0 and (step + 1) % every == 0
    keys = [key for hand in hands for key in hand]
    played = iter(first.rollouts.play(agent, keys, held_out=is_asked))
    engine.forget()  # episodes that ended before their last turn
    seconds = (time.monotonic() - started) / len(collectors)
    taken: list[StepRollouts] = []
    for each, hand in zip(collectors, hands, strict=True):
        taken.append(each.record([*itertools.islice(played, len(hand))], seconds))
    return taken


def require_trainable(tasks: Iterable[Task]) -> None:
    """Refuse tasks that are not for training.

    Raises:
        TrainingError: one is of another split, or for evaluation only.
    """
    for task in tasks:
        if task.split != "train" or task.metadata.get("evaluation_only"):
            only = " and for evaluation only" if task.metadata.get("evaluation_only") else ""
            raise TrainingError(
                f"task {task.id} is of split {task.split!r}{only}; only 'train' may be trained on"
            )
