"""What a step of training says of itself, and when that must end the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from envkit.train.config import TrainConfig
from envkit.train.groups import TrainingGroup
from envkit.train.rollouts import StepRollouts

#: How rarely an alarm may come of chance alone, where just `TrainConfig.max_hacked` of tasks are hacked.
_FALSE_ALARMS = 0.05


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one step did.

    Args:
        step: 1-based.
        reward: mean over episodes that are not void, without `TrainConfig.shaping`.
        mixed: share of groups with more than one outcome; without shaping only they teach.
        void: share of episodes whose machinery broke.
        loss: the step's loss.
        grad_norm: before clipping.
        drift: mean |log-probability in the learner - when sampled| per token, in nats.
        kl: mean estimated divergence from the model without its adapter per token, in nats; 0 unless ``beta``
            or ``max_kl`` asks for it.
        clipped: share of trained tokens outside the clip range.
        entropy: mean -log-probability of the sampled tokens, in nats.
        completion_tokens: tokens sampled in episodes that are not void.
        asked: tasks whose solved episodes were put to the held-out checks.
        hacked: share of those where a check rejects most of them.
        rollout_s, learn_s: wall seconds.
    """

    step: int
    reward: float
    mixed: float
    void: float
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


class Learned(NamedTuple):
    """What an optimizer step says of itself; see `StepMetrics`."""

    loss: float
    grad_norm: float
    drift: float
    kl: float
    clipped: float


def step_metrics(
    step: int, played: StepRollouts, taught: Sequence[TrainingGroup], learned: Learned, learn_s: float
) -> StepMetrics:
    """What a step did, all told."""
    valid, logged, rejected = played.valid(), played.sampled_logprobs(), played.rejected()
    episodes = sum(map(len, played.groups))
    return StepMetrics(
        step=step,
        reward=sum(t.reward for t in valid) / max(len(valid), 1),
        mixed=sum(lesson.mixed for lesson in taught) / max(len(played.groups), 1),
        void=1 - len(valid) / max(episodes, 1),
        **learned._asdict(),
        entropy=-sum(logged) / max(len(logged), 1),
        completion_tokens=len(logged),
        asked=len(rejected),
        hacked=sum(rejected) / max(len(rejected), 1),
        rollout_s=played.seconds,
        learn_s=learn_s,
    )


def alarm_of(metrics: StepMetrics, config: TrainConfig) -> str:
    """Why training must not go on, as far as one step shows it; empty if nothing is wrong."""
    advice = "lower learning_rate, or raise beta"
    if metrics.completion_tokens and metrics.entropy < config.min_entropy:
        return (
            f"step {metrics.step}: the policy has collapsed, with an entropy of {metrics.entropy:.2g} nats "
            f"per token (min_entropy is {config.min_entropy:g}): it tries nothing else any more; {advice}"
        )
    if config.max_kl is not None and metrics.kl > config.max_kl:
        return (
            f"step {metrics.step}: the policy has left its base, {metrics.kl:.2g} nats per token away "
            f"(max_kl is {config.max_kl:g}); {advice}"
        )
    if _is_hacked(metrics, config.max_hacked):
        return (
            f"step {metrics.step}: {metrics.hacked:.0%} of {metrics.asked} solved tasks fail a held-out "
            f"check (max_hacked is {config.max_hacked:g}): the reward is won without the work; look at them "
            "in episodes.jsonl, and mend the checks"
        )
    return ""


def _is_hacked(metrics: StepMetrics, most: float) -> bool:
    """Whether more than this share of the tasks is hacked: clearly so, for a step has few."""
    if metrics.hacked <= most:
        return False
    import scipy.stats

    library: Any = scipy.stats
    hacked = round(metrics.hacked * metrics.asked)
    return bool(library.binomtest(hacked, metrics.asked, most, alternative="greater").pvalue < _FALSE_ALARMS)
