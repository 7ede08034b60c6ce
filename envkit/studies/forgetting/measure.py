"""Measure how far an adapter has moved from its base: on text that is no task, and on its own task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from envkit.agents.local import LocalAgent
from envkit.agents.with_system import WithSystem
from envkit.engine.protocol import Sampling
from envkit.env import Env
from envkit.errors import UsageError
from envkit.measure.evaluation import episode_keys
from envkit.measure.number_text import nats
from envkit.measure.spec import EVALUATION_SEED
from envkit.measure.stats import FEW_DIFFERING, Interval, mean_interval
from envkit.rollout import Rollouts
from envkit.runtime.display import Display
from envkit.sandbox import SandboxBackend
from envkit.studies.forgetting.passages import Passage
from envkit.training.config import TrainConfig
from envkit.training.learner.loss import divergence
from envkit.training.learner.packing import TrainingRow, pack, shared_prompt, training_row
from envkit.training.policy import Policy
from envkit.types import Outcome, Task, Trajectory

#: Longest part of a passage that is read, in tokens.
_MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TextLoss:
    """Negative log-likelihood of passages, in nats per token. Intervals resample the passages' files.

    Args:
        passages: their number.
        tokens: predicted tokens of all passages.
        base: mean over passages under the base.
        adapter: the same with the adapter.
        rise: ``adapter`` minus ``base``, paired by passage.
        rises: the same for each passage.
        sources: the file that each passage stands in.
    """

    passages: int
    tokens: int
    base: Interval
    adapter: Interval
    rise: Interval
    rises: tuple[float, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Movement:
    """KL divergence of a changed model from its base, in nats per sampled token, on its own episodes.

    Args:
        environment: its name.
        episodes: their number, one for each task.
        kl: mean over episodes; the interval resamples the tasks' sources.
    """

    environment: str
    episodes: int
    kl: Interval


@dataclass(frozen=True, slots=True)
class Forgetting:
    """Distance of an adapter from its base.

    Args:
        text: on text that is no task.
        task: on its own task; ``None`` if no environment was played.
    """

    text: TextLoss
    task: Movement | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        """Say the numbers in sentences."""
        text = self.text
        said = (
            f"On {text.passages} passages of other text ({text.tokens:,} tokens): {nats(text.base)} nats "
            f"per token for the base, {nats(text.adapter)} with the adapter.",
            f"Rise: {nats(text.rise)}. {_verdict(text.rise)}",
        )
        if self.task is None:
            return said
        return (
            *said,
            f"On {self.task.episodes} tasks of {self.task.environment}: KL divergence from the base "
            f"{nats(self.task.kl)} nats per sampled token.",
        )


def text_loss(policy: Policy, passages: Sequence[Passage], display: Display) -> TextLoss:
    """Measure passages with and without the adapter in training.

    Raises:
        UsageError: no passage has two tokens.
    """
    base: list[float] = []
    adapted: list[float] = []
    sources: list[str] = []
    tokens = 0
    display.phase("read other text", len(passages))
    for count, passage in enumerate(passages, 1):
        display.advance(count, "")
        ids = policy.renderer.plain(passage.text)[:_MAX_TOKENS]
        if len(ids) < 2:
            continue
        following = ids[1:]
        zeros = (0.0,) * len(following)
        batch = pack(ids[:1], [TrainingRow(following, (True,) * len(following), zeros, zeros)], policy.device)
        with torch.no_grad():
            adapted.append(-float(policy.logprobs(batch, 1.0).mean()))
            with policy.model.disable_adapter():
                base.append(-float(policy.logprobs(batch, 1.0).mean()))
        sources.append(passage.source)
        tokens += len(following)
    if not sources:
        raise UsageError("no passage has two tokens or more; give longer texts")
    rise = [after - before for after, before in zip(adapted, base, strict=True)]
    return TextLoss(
        len(sources),
        tokens,
        mean_interval(base, sources),
        mean_interval(adapted, sources),
        mean_interval(rise, sources),
        tuple(rise),
        tuple(sources),
    )


def movement(
    policy: Policy,
    config: TrainConfig,
    kind: type[Env],
    tasks: Sequence[Task],
    backend: SandboxBackend,
    display: Display,
    system: str = "",
) -> Movement | None:
    """Play each task once with the adapter in training, or with a system message, and compare with the base.

    Args:
        policy: holds the adapter.
        config: the adapter's; episodes are sampled at temperature 1, where the divergence is defined.
        kind: the environment.
        tasks: the tasks.
        backend: isolates the episodes.
        display: live view.
        system: a system message to play with; the base is asked with the environment's own.

    Returns:
        ``None`` if all episodes are void.
    """
    policy.sync()
    turns = config.turns
    local = LocalAgent(
        "adapter",
        policy.engine,
        policy.renderer,
        Sampling(1.0, config.max_completion_length, stop_strings=config.stop_strings),
        turns,
        max_context_length=config.max_context_length,
    )
    agent = WithSystem(local, system) if system else local
    display.phase(f"play {kind.id}", len(tasks))
    with Rollouts(lambda: kind(tasks=tasks, sandbox=backend, max_turns=turns)) as rollouts:
        played = rollouts.play(agent, episode_keys(tasks, 1, EVALUATION_SEED))
    source_of = {task.id: task.source for task in tasks}
    rates: list[float] = []
    sources: list[str] = []
    for count, episode in enumerate(played, 1):
        if episode.outcome is not Outcome.VOID:
            own = policy.renderer.first(kind.system, episode.steps[0].observation) if system else None
            rates.append(_kl(policy, episode, own))
            sources.append(source_of[episode.key.task])
        display.advance(count, "")
    return Movement(kind.id, len(rates), mean_interval(rates, sources)) if rates else None


def _kl(policy: Policy, episode: Trajectory, base_prompt: tuple[int, ...] | None) -> float:
    """Mean over an episode's sampled tokens of the estimated divergence from the base.

    Args:
        policy: holds the adapter.
        episode: what was sampled.
        base_prompt: first prompt of the base; ``None`` for the episode's own.
    """
    prompt = shared_prompt([episode])
    row = training_row(episode, [0.0] * len(episode.steps), len(prompt))
    batch = pack(prompt, [row], policy.device)
    base_batch = batch if base_prompt is None else pack(base_prompt, [row], policy.device)
    with torch.no_grad():
        new_N = policy.logprobs(batch, 1.0)
        with policy.model.disable_adapter():
            base_N = policy.logprobs(base_batch, 1.0)
    return float(divergence(new_N, base_N).mean())


def _verdict(rise: Interval) -> str:
    if not math.isfinite(rise.high - rise.low):
        return "So few passages have no interval: nothing is shown."
    if rise.clusters < FEW_DIFFERING:
        return f"{rise.clusters} files are too few, of at least {FEW_DIFFERING}: nothing is shown."
    if not rise.excludes_zero:
        return "The interval includes zero: no forgetting is shown."
    return "The adapter predicts other text worse." if rise.low > 0 else "The adapter predicts it better."
