"""LoRA reinforcement learning, the whole loop: pick tasks, play, compare within groups, step.

GRPO (arXiv:2402.03300) without standard-deviation scaling (arXiv:2503.20783), a token-level loss unless
another is asked for (arXiv:2503.14476), and advantages turn by turn. One gradient step per batch of rollouts,
on the exact tokens and log-probabilities that were recorded while sampling.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from envkit.errors import ContractError, StoreError, TrainingError
from envkit.rollout import Rollouts
from envkit.store import Journal
from envkit.train import checkpoint
from envkit.train.advantages import turn_advantages
from envkit.train.config import TrainConfig
from envkit.train.loss import StepSize, logprobs, policy_loss
from envkit.train.packing import Batch, Row, chunks, pack, row_of
from envkit.train.policy import Policy
from envkit.train.practice import Played, Practice, play_together
from envkit.types import Outcome, Task, Trajectory, Verdict

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


@dataclass(frozen=True, slots=True)
class Lesson:
    """One group to learn from.

    Args:
        prompt: ids that all its episodes began with.
        rows: what each of them added.
        mixed: whether their rewards differ, without shaping.
        teaches: whether they do with it; if not, none has a gradient but by ``beta``.
    """

    prompt: tuple[int, ...]
    rows: list[Row]
    mixed: bool
    teaches: bool


def lessons(played: Played, shaping: Mapping[str, float]) -> list[Lesson]:
    """Every group that has a valid episode, in order.

    Args:
        played: the episodes.
        shaping: see `TrainConfig.shaping`.

    Raises:
        ContractError: an environment began episodes of one group with different observations.
    """
    found: list[Lesson] = []
    for group in played.groups:
        valid = [t for t in group if t.outcome is not Outcome.VOID]
        if not valid:
            continue
        advantages = turn_advantages([_rewards(t, shaping) for t in valid])
        prompts = {t.steps[0].turn.tokens.prompt_ids for t in valid if t.steps[0].turn.tokens}
        if len(prompts) > 1:
            raise ContractError(
                f"environment {valid[0].env} began one visit of task {valid[0].key.task} with different "
                "observations; what reset() shows must follow from task and seed"
            )
        rows = [row_of(t, row) for t, row in zip(valid, advantages, strict=True)]
        mixed = len({t.reward for t in valid}) > 1
        found.append(Lesson(prompts.pop(), rows, mixed, any(any(row) for row in advantages)))
    return found


def _rewards(trajectory: Trajectory, shaping: Mapping[str, float]) -> list[float]:
    """An episode's rewards, turn by turn; what shapes them comes with the last, and not for a cheat."""
    *before, last = [step.reward for step in trajectory.steps]
    if trajectory.info.get("verdict") == Verdict.TAMPERED.value:
        return [*before, last]
    scores = trajectory.scores  # those of another environment lack the check
    return [*before, last + sum(weight * scores.get(name, 0.0) for name, weight in shaping.items())]


def step_metrics(
    step: int, played: Played, taught: Sequence[Lesson], learned: Learned, learn_s: float
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


class Learned(NamedTuple):
    """What an optimizer step says of itself; see `StepMetrics`."""

    loss: float
    grad_norm: float
    drift: float
    kl: float
    clipped: float


class Trainer(ABC):
    """A policy in training and how far it has come; a subclass takes the steps.

    Args:
        policy: trained in place.
        tasks: train tasks; evaluation-only ones are refused.
        rollouts: plays the episodes.
        config: hyperparameters.
        metrics: journal of what every step did.
        episodes: journal that every episode is appended to before its gradient is used.
        store: where checkpoints go.
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
        metrics: Journal,
        episodes: Journal,
        store: checkpoint.CheckpointStore,
        estimates: Mapping[str, float] | None = None,
    ) -> None:
        self._policy, self._config, self._metrics, self.store = policy, config, metrics, store
        self.practice = Practice(policy, tasks, rollouts, config, episodes, estimates)
        self._optimizer = torch.optim.AdamW(
            policy.trainable(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.step = 0
        #: Why training must not go on; empty while all is well.
        self.alarm = ""

    @abstractmethod
    def _steps(self, took: Callable[[StepMetrics], bool]) -> None:
        """Take at most as many steps as are left, until ``took`` says of one that it shall be the last."""

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint, if there is one."""
        state = self.store.load(self._policy, self._optimizer)
        if state is None:
            return False
        self.step, self.alarm = int(state["step"]), self.store.alarm()
        self.practice.curriculum.restore(state["curriculum"])
        return True

    def train(self, go_on: Callable[[StepMetrics], bool]) -> None:
        """Run until ``config.max_steps``, until an `alarm`, or until ``go_on`` says False after a step.

        The last state is always checkpointed.
        """

        def took(metrics: StepMetrics) -> bool:
            wanted = go_on(metrics)
            self.note(metrics)
            if self.is_due(wanted):
                self.save()
            return wanted and not self.alarm

        if not self.is_done():
            self._steps(took)

    def is_done(self) -> bool:
        """Whether there is no step left to take."""
        return self.step >= self._config.max_steps or bool(self.alarm)

    def note(self, metrics: StepMetrics) -> None:
        """Log a step that was taken."""
        self.step = metrics.step
        self._metrics.append({"phase": "rl", **asdict(metrics)})
        self.alarm = _alarm(metrics, self._config)

    def is_due(self, go_on: bool) -> bool:
        """Whether the present step is to be saved; ``go_on`` says whether another is wanted."""
        return not go_on or self.is_done() or self.step % self._config.save_steps == 0

    def stop(self, reason: str) -> None:
        """Take no more steps, and say why in the checkpoint of the present one."""
        self.alarm = reason
        self.save()
        self.store.end(reason)  # it may have been saved before, without

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        curriculum = self.practice.curriculum.state()
        state = {"step": self.step, "curriculum": curriculum, "alarm": self.alarm}
        self.store.save(self.step, self._policy, self._optimizer, state)


@final
class GRPOTrainer(Trainer):
    """The loop itself; see the module."""

    def _steps(self, took: Callable[[StepMetrics], bool]) -> None:
        while not self.is_done() and took(self.learn(self.practice.play(self.step))):
            pass

    def learn(self, played: Played) -> StepMetrics:
        """Take one step, from the episodes that were played for it."""
        started = time.monotonic()
        size = StepSize(len(played.sampled_logprobs()), len(played.valid()))
        taught = lessons(played, self._config.shaping)
        learned = self._learn(taught, size)
        return step_metrics(self.step + 1, played, taught, learned, time.monotonic() - started)

    def _learn(self, taught: Sequence[Lesson], size: StepSize) -> Learned:
        """One optimizer step over the groups that have a gradient; others may tell how far the policy went.

        ``size`` counts the unmixed ones too, so that a step with few mixed groups moves less.
        """
        config = self._config
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * min((self.step + 1) / max(config.warmup_steps, 1), 1.0)
        loss = drift = kl = norm = 0.0
        clipped = trained = 0
        for lesson in taught:
            learns = lesson.teaches or config.beta > 0
            if not learns and not config.needs_reference:
                continue
            for chunk in chunks(lesson.prompt, lesson.rows, config.max_tokens_per_forward):
                batch = pack(lesson.prompt, chunk, self._policy.device)
                reference_N = self._reference(batch)
                with torch.set_grad_enabled(learns):
                    new_N = logprobs(self._policy.model, batch, config.temperature)
                    terms = policy_loss(new_N, batch, size, config, reference_N)
                if learns:
                    terms.total.backward()
                loss, kl = loss + float(terms.total.detach()), kl + terms.kl
                drift, clipped, trained = drift + terms.drift, clipped + terms.clipped, trained + terms.tokens
        if trained:
            norm = float(torch.nn.utils.clip_grad_norm_(self._policy.trainable(), config.max_grad_norm))
            require_finite(norm, self.step + 1)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Learned(loss, norm, drift / max(trained, 1), kl / max(trained, 1), clipped / max(trained, 1))

    def _reference(self, batch: Batch) -> Tensor | None:
        """What the model without its adapter gives, where it is needed."""
        if not self._config.needs_reference:
            return None
        model = self._policy.model
        with torch.no_grad(), model.disable_adapter():
            return logprobs(model, batch, self._config.temperature)


def require_finite(grad_norm: float, step: int) -> None:
    """Refuse a step whose gradient is broken.

    Raises:
        TrainingError: it is not finite.
    """
    if not math.isfinite(grad_norm):
        raise TrainingError(
            f"step {step}: the gradient is not finite; lower learning_rate. The last checkpoint is whole."
        )


def resume_together(trainers: Sequence[Trainer]) -> None:
    """Go on from the newest step that all have saved; whoever an alarm has ended stays there.

    What only some have saved beyond it is discarded: it will be done again.

    Raises:
        StoreError: all have checkpoints, and none is of a step that all have.
    """
    ended = [trainer for trainer in trainers if trainer.store.alarm()]
    for trainer in ended:
        trainer.resume()
    left = [trainer for trainer in trainers if trainer not in ended]
    saved = [{*trainer.store.steps()} for trainer in left]
    common = set[int].intersection(*saved) if saved else set[int]()
    if saved and all(saved) and not common:
        raise StoreError(f"the checkpoints of {len(saved)} seeds are of no common step: {saved}")
    for trainer in left:
        trainer.store.discard_after(max(common, default=0))
        trainer.resume()


def train_together(trainers: Sequence[GRPOTrainer], go_on: Callable[[int, StepMetrics], bool]) -> None:
    """Train several adapters of one base at once: what all of them sample is one batch, step by step.

    One whose step fails is ended by an alarm; the others go on.

    Args:
        trainers: see `play_together`; all have come equally far, but for those that an alarm has ended.
        go_on: asked after each step of each, with its number among them, as `Trainer.train` does. Once it
            says False, all end after this step.

    Raises:
        TrainingError: two have one seed, which tells their episodes apart.
    """
    seeds = [trainer.practice.config.seed for trainer in trainers]
    if len({*seeds}) < len(seeds):
        raise TrainingError(f"adapters with the seeds {seeds} cannot be trained at once: give each its own")
    wanted = True
    while wanted and (left := [trainer for trainer in trainers if not trainer.is_done()]):
        played = play_together([trainer.practice for trainer in left], left[0].step)
        learned: list[tuple[GRPOTrainer, StepMetrics]] = []
        failed: list[tuple[GRPOTrainer, str]] = []
        for trainer, own in zip(left, played, strict=True):
            try:
                learned.append((trainer, trainer.learn(own)))
            except TrainingError as error:
                failed.append((trainer, str(error)))
        wanted = all([go_on(trainers.index(trainer), metrics) for trainer, metrics in learned])
        for trainer, metrics in learned:
            trainer.note(metrics)
        ended = [trainer for trainer, _ in learned if trainer.alarm]
        # Without those that end, later batches are others: before an end is on record, whoever goes on must
        # have saved this step, lest a killed run does an earlier one again without them.
        for trainer, _ in learned:
            if trainer not in ended and (ended or failed or trainer.is_due(wanted)):
                trainer.save()
        for trainer in ended:
            trainer.save()
        for trainer, reason in failed:
            trainer.stop(reason)


def _alarm(metrics: StepMetrics, config: TrainConfig) -> str:
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
