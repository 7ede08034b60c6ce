"""Collecting rollouts: pick the tasks of one step and play a group of episodes of each."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, final

from envkit.agents.local import LocalAgent
from envkit.engine.protocol import Sampling
from envkit.errors import SandboxError, TrainingError
from envkit.rollout import Rollouts
from envkit.runtime.store import Journal, trajectory_to_json
from envkit.training.config import TrainConfig
from envkit.training.curriculum import Curriculum
from envkit.training.learner.heap import release_freed_memory
from envkit.training.policy import Policy
from envkit.types import EpisodeKey, Outcome, Task, Trajectory

#: A step with a larger share of void episodes ends training: the machinery is broken.
_MAX_VOID_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class StepRollouts:
    """The episodes of one training step.

    Args:
        groups: one list of episodes per task visit.
        seconds: wall time; if several seeds were sampled together, this seed's share of it.
    """

    groups: list[list[Trajectory]]
    seconds: float

    def valid(self) -> list[Trajectory]:
        """The episodes that are not void."""
        return [t for group in self.groups for t in valid_episodes(group)]

    def rejected(self) -> list[bool]:
        """For each group that ran held-out checks: True if they reject most of its solved episodes.

        One vote per group, because episodes of one group tend to agree.
        """
        votes: list[bool] = []
        for group in self.groups:
            passes = [passed for t in group if (passed := passes_held_out(t)) is not None]
            if passes:
                votes.append(passes.count(False) > len(passes) / 2)
        return votes

    def sampled_logprobs(self) -> list[float]:
        """Log-probabilities of all sampled tokens of the valid episodes."""
        steps = [step for t in self.valid() for step in t.steps]
        return [logprob for step in steps if step.turn.tokens for logprob in step.turn.tokens.logprobs]


def valid_episodes(group: Sequence[Trajectory]) -> list[Trajectory]:
    """The episodes of a group that are not void."""
    return [t for t in group if t.outcome is not Outcome.VOID]


def is_mixed(valid: Sequence[Trajectory]) -> bool:
    """True if the rewards of a group's valid episodes differ."""
    return len({t.reward for t in valid}) > 1


def _earned(valid: Sequence[Trajectory], config: TrainConfig) -> float | None:
    """Sum of a group's rewards for the curriculum; ``None`` if only its solved episodes count.

    A group of equal rewards has no gradient, however much partial credit each episode gets.
    """
    if config.advantage != "group" or not is_mixed(valid):
        return None
    return sum(min(max(t.reward, 0.0), 1.0) for t in valid)  # costs and bonuses lie beyond


def passes_held_out(trajectory: Trajectory) -> bool | None:
    """True if an episode passes all held-out checks; ``None`` if none were run."""
    scores = cast("Mapping[str, float]", trajectory.info.get("held_out", {}))
    return min(scores.values()) == 1 if scores else None


@final
class RolloutCollector:
    """Picks tasks, plays a group of episodes of each, and logs every episode.

    Args:
        policy: samples the actions.
        tasks: training tasks.
        rollouts: runs the episodes.
        config: hyperparameters.
        episodes: journal; every episode is written to it before its gradient is used.

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
    ) -> None:
        require_trainable(tasks)
        self.policy, self.rollouts, self.config, self._episodes = policy, rollouts, config, episodes
        self.curriculum = Curriculum(
            tasks, config.seed, weights=config.weights, worst_task_weight=config.worst_task_weight
        )

    def collect(self, step: int) -> StepRollouts:
        """Pick the tasks of a step and play one group of each with the current weights."""
        return collect_all([self], step)[0]

    def episode_keys(self, step: int) -> list[EpisodeKey]:
        """Keys of the step's episodes, group by group."""
        config = self.config
        return [
            EpisodeKey(config.seed, step, group, row, task)
            for group, task in enumerate(self.curriculum.pick(step, config.groups_per_step))
            for row in range(config.num_generations)
        ]

    def record(self, episodes: Sequence[Trajectory], seconds: float) -> StepRollouts:
        """Log finished episodes, in the order of `episode_keys`, and update the curriculum."""
        size = self.config.num_generations
        groups = [[*episodes[start : start + size]] for start in range(0, len(episodes), size)]
        for group in groups:
            for trajectory in group:
                self._episodes.append({"phase": "rl", **trajectory_to_json(trajectory)})
            valid, key = valid_episodes(group), group[0].key
            solved, earned = sum(t.solved for t in valid), _earned(valid, self.config)
            self.curriculum.record(key.step, key.task, solved, len(valid), earned)
        self._episodes.sync()  # logged before use
        return StepRollouts(groups, seconds)


def collect_all(collectors: Sequence[RolloutCollector], step: int) -> list[StepRollouts]:
    """Collect one step of every collector, with all episodes in one batch.

    Args:
        collectors: their policies are siblings, and their configurations differ only in the seed. The first
            one's ``rollouts`` runs all episodes and knows the tasks of all.
        step: the same for all.

    Raises:
        SandboxError: most episodes of a collector are void.
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
        config.turns,
        adapter={collector.config.seed: number for number, collector in enumerate(collectors)},
        max_context_length=config.max_context_length,
        should_stop=first.rollouts.should_stop,
    )
    keys_by_collector = [collector.episode_keys(step) for collector in collectors]
    runs_held_out = config.alarm_steps > 0 and (step + 1) % config.alarm_steps == 0
    keys = [key for keys in keys_by_collector for key in keys]
    episodes = iter(first.rollouts.play(agent, keys, held_out=runs_held_out))
    engine.forget()  # KV state of episodes that ended before their last turn
    release_freed_memory()  # of sampling, in pieces too small for what learning needs
    seconds = (time.monotonic() - started) / len(collectors)
    collected = [
        collector.record([*itertools.islice(episodes, len(keys))], seconds)
        for collector, keys in zip(collectors, keys_by_collector, strict=True)
    ]
    for rollouts in collected:
        _require_played(rollouts, step + 1)
    return collected


def _require_played(rollouts: StepRollouts, step: int) -> None:
    """Refuse a step of void episodes, which would count as taken and teach nothing."""
    episodes = [t for group in rollouts.groups for t in group]
    broken = [t for t in episodes if t.outcome is Outcome.VOID]
    if len(broken) > _MAX_VOID_SHARE * len(episodes):
        raise SandboxError(
            f"step {step}: {len(broken)} of {len(episodes)} episodes are void, such as: "
            f"{broken[0].info.get('error', 'no reason is recorded')}; mend that and resume"
        )


def require_trainable(tasks: Iterable[Task]) -> None:
    """Refuse tasks that are not for training.

    Raises:
        TrainingError: a task belongs to another split or is for evaluation only.
    """
    for task in tasks:
        if task.split != "train" or task.metadata.get("evaluation_only"):
            only = " and for evaluation only" if task.metadata.get("evaluation_only") else ""
            raise TrainingError(
                f"task {task.id} is of split {task.split!r}{only}; only 'train' may be trained on"
            )
