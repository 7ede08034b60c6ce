"""Metrics of a training step, and the alarms that end a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from envkit.rollout import raised
from envkit.training.config import TrainConfig
from envkit.training.groups import TrainingGroup
from envkit.training.rollouts import StepRollouts, is_mixed, valid_episodes
from envkit.types import Trajectory

#: Significance level of the hacking alarm: false alarms if exactly `TrainConfig.max_hacked` are hacked.
_FALSE_ALARMS = 0.05
#: Share of a step's episodes in which the environment may raise before the run ends. No single action may end
#: a run, so it takes nearly all of them.
MAX_RAISED = 0.9


@dataclass(frozen=True, slots=True)
class EnvironmentMetrics:
    """The part of a training step that one environment gave.

    Args:
        episodes: that are not void.
        reward, mixed: see `StepMetrics`.
    """

    episodes: int
    reward: float
    mixed: float


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Metrics of one training step.

    Args:
        step: 1-based.
        reward: mean over episodes that are not void, without `TrainConfig.shaping`.
        mixed: share of groups whose rewards differ. Only these have a gradient, unless shaping, checks of
            each turn, ``beta`` or ``advantage="solved"`` gives one to others.
        void: share of episodes that the sandbox or the agent's provider failed.
        raised: share of episodes in which the environment's own code raised, which is a bug.
        loss: the step's loss.
        grad_norm: before clipping.
        drift: mean |learner log-probability - sampled log-probability| per token, in nats.
        kl: mean estimated KL divergence from the model without its adapter per token, in nats; 0 unless
            ``beta`` or ``max_kl`` is set.
        clipped: share of trained tokens whose ratio lies beyond the clip range, on the side where clipping
            removes their gradient.
        entropy: mean -log-probability of the sampled tokens, in nats.
        completion_tokens: tokens sampled in episodes that are not void.
        asked: tasks whose solved episodes ran the held-out checks.
        hacked: share of those tasks where a held-out check rejects most solved episodes.
        rollout_s, learn_s: wall seconds.
        environments: the part of each environment, by name; of several, a step may have no episode of one.
    """

    step: int
    reward: float
    mixed: float
    void: float
    raised: float
    loss: float
    grad_norm: float
    drift: float
    kl: float
    clipped: float
    entropy: float
    completion_tokens: int
    asked: int
    hacked: float
    rollout_s: float
    learn_s: float
    environments: Mapping[str, EnvironmentMetrics]


class UpdateMetrics(NamedTuple):
    """The part of `StepMetrics` that the optimizer step gives."""

    loss: float
    grad_norm: float
    drift: float
    kl: float
    clipped: float


def step_metrics(
    step: int, rollouts: StepRollouts, groups: Sequence[TrainingGroup], update: UpdateMetrics, learn_s: float
) -> StepMetrics:
    """The metrics of one step, from its rollouts and its update."""
    valid, logged, rejected = rollouts.valid(), rollouts.sampled_logprobs(), rollouts.rejected()
    episodes = [t for group in rollouts.groups for t in group]
    return StepMetrics(
        step=step,
        reward=sum(t.reward for t in valid) / max(len(valid), 1),
        mixed=sum(group.mixed for group in groups) / max(len(rollouts.groups), 1),
        void=1 - len(valid) / max(len(episodes), 1),
        raised=sum(map(raised, episodes)) / max(len(episodes), 1),
        **update._asdict(),
        entropy=-sum(logged) / max(len(logged), 1),
        completion_tokens=len(logged),
        asked=len(rejected),
        hacked=sum(rejected) / max(len(rejected), 1),
        rollout_s=rollouts.seconds,
        learn_s=learn_s,
        environments=_by_environment(rollouts.groups),
    )


def _by_environment(groups: Sequence[Sequence[Trajectory]]) -> dict[str, EnvironmentMetrics]:
    groups_of: dict[str, list[list[Trajectory]]] = {}
    for group in groups:
        groups_of.setdefault(group[0].env, []).append(valid_episodes(group))
    found: dict[str, EnvironmentMetrics] = {}
    for name, of_env in groups_of.items():
        rewards = [t.reward for group in of_env for t in group]
        mixed = sum(map(is_mixed, of_env)) / len(of_env)
        found[name] = EnvironmentMetrics(len(rewards), sum(rewards) / max(len(rewards), 1), mixed)
    return found


def joined(updates: Sequence[StepMetrics]) -> StepMetrics:
    """The metrics of a step with several updates on the same rollouts.

    ``loss``, ``drift`` and ``kl`` are the first update's, made at the weights that sampled; ``grad_norm`` and
    ``clipped`` are means; ``learn_s`` is the sum.
    """
    return replace(
        updates[0],
        grad_norm=sum(each.grad_norm for each in updates) / len(updates),
        clipped=sum(each.clipped for each in updates) / len(updates),
        learn_s=sum(each.learn_s for each in updates),
    )


def alarm_of(metrics: StepMetrics, config: TrainConfig) -> str:
    """The reason why this step must end the run; empty if nothing is wrong."""
    advice = "lower learning_rate, or raise beta"
    if metrics.raised > MAX_RAISED:
        return (
            f"step {metrics.step}: the environment raised an exception in {metrics.raised:.0%} of the "
            "episodes; fix it: info.trace in episodes.jsonl says where"
        )
    if metrics.completion_tokens and metrics.entropy < config.min_entropy:
        return (
            f"step {metrics.step}: the policy has collapsed, with an entropy of {metrics.entropy:.2g} nats "
            f"per token (min_entropy is {config.min_entropy:g}): it always samples the same answers; {advice}"
        )
    if config.max_kl is not None and metrics.kl > config.max_kl:
        return (
            f"step {metrics.step}: the policy is {metrics.kl:.2g} nats per token away from its base "
            f"(max_kl is {config.max_kl:g}); {advice}"
        )
    if _is_hacked(metrics, config.max_hacked):
        return (
            f"step {metrics.step}: {metrics.hacked:.0%} of {metrics.asked} solved tasks fail a held-out "
            f"check (max_hacked is {config.max_hacked:g}): the policy earns the reward without solving the "
            "task; read these episodes in episodes.jsonl and fix the checks"
        )
    return ""


def _is_hacked(metrics: StepMetrics, limit: float) -> bool:
    """True if significantly more than this share of tasks is hacked; a step has few tasks."""
    if metrics.hacked <= limit:
        return False
    import scipy.stats

    library: Any = scipy.stats
    hacked = round(metrics.hacked * metrics.asked)
    return bool(library.binomtest(hacked, metrics.asked, limit, alternative="greater").pvalue < _FALSE_ALARMS)
