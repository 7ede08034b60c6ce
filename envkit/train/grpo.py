"""LoRA reinforcement learning, the whole loop: pick tasks, play, compare within groups, step.

GRPO (arXiv:2402.03300) without standard-deviation scaling (arXiv:2503.20783), a token-level loss unless
another is asked for (arXiv:2503.14476), and advantages turn by turn. One gradient step per batch of rollouts,
on the exact tokens and log-probabilities that were recorded while sampling.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import final

import torch
from torch import Tensor

from envkit.errors import TrainingError
from envkit.store import Journal
from envkit.train.checkpoint import CheckpointStore
from envkit.train.groups import TrainingGroup, training_groups
from envkit.train.loss import StepSize, logprobs, policy_loss
from envkit.train.metrics import Learned, StepMetrics, alarm_of, step_metrics
from envkit.train.packing import PackedBatch, chunks, pack
from envkit.train.rollouts import RolloutCollector, StepRollouts


class Trainer(ABC):
    """A policy in training and how far it has come; a subclass takes the steps.

    Args:
        collector: plays the episodes; its policy is trained in place, as its configuration says.
        metrics: journal of what every step did.
        store: where checkpoints go.
    """

    def __init__(self, collector: RolloutCollector, metrics: Journal, store: CheckpointStore) -> None:
        self.collector, self._metrics, self.store = collector, metrics, store
        self._policy, self._config = collector.policy, collector.config
        self._optimizer = torch.optim.AdamW(
            self._policy.trainable(), lr=self._config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.step = 0
        #: Why training must not go on; empty while all is well.
        self.alarm = ""

    @abstractmethod
    def _steps(self, took: Callable[[StepMetrics], bool]) -> None:
        """Take at most as many steps as are left, until ``took`` says of one that it shall be the last.

        Raises:
            TrainingError: a step failed, which has left the weights as they were before.
        """

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint, if there is one."""
        state = self.store.load(self._policy, self._optimizer)
        if state is None:
            return False
        self.step, self.alarm = int(state["step"]), self.store.alarm()
        self.collector.curriculum.restore(state["curriculum"])
        return True

    def train(self, go_on: Callable[[StepMetrics], bool]) -> None:
        """Run until ``config.max_steps``, until an `alarm`, or until ``go_on`` says False after a step.

        A step that fails is an alarm too. The last state is always checkpointed.
        """

        def took(metrics: StepMetrics) -> bool:
            wanted = go_on(metrics)
            self.note(metrics)
            if self.is_due(wanted):
                self.save()
            return wanted and not self.alarm

        if self.is_done():
            return
        try:
            self._steps(took)
        except TrainingError as error:
            self.stop(str(error))

    def is_done(self) -> bool:
        """Whether there is no step left to take."""
        return self.step >= self._config.max_steps or bool(self.alarm)

    def note(self, metrics: StepMetrics) -> None:
        """Log a step that was taken."""
        self.step = metrics.step
        self._metrics.append({"phase": "rl", **asdict(metrics)})
        self.alarm = alarm_of(metrics, self._config)

    def is_due(self, go_on: bool) -> bool:
        """Whether the present step is to be saved; ``go_on`` says whether another is wanted."""
        return not go_on or self.is_done() or self.step % self._config.save_steps == 0

    def stop(self, reason: str) -> None:
        """Take no more steps, for the next one failed: save the present one, and the reason."""
        self.save()
        self.store.end(reason)
        self.alarm = reason

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        curriculum = self.collector.curriculum.state()
        state = {"step": self.step, "curriculum": curriculum, "alarm": self.alarm}
        self.store.save(self.step, self._policy, self._optimizer, state)


@final
class GRPOTrainer(Trainer):
    """The loop itself; see the module."""

    def _steps(self, took: Callable[[StepMetrics], bool]) -> None:
        while not self.is_done() and took(self.learn(self.collector.collect(self.step))):
            pass

    def learn(self, played: StepRollouts) -> StepMetrics:
        """Take one step, from the episodes that were played for it."""
        started = time.monotonic()
        size = StepSize(len(played.sampled_logprobs()), len(played.valid()))
        taught = training_groups(played, self._config.shaping)
        learned = self._learn(taught, size)
        return step_metrics(self.step + 1, played, taught, learned, time.monotonic() - started)

    def _learn(self, taught: Sequence[TrainingGroup], size: StepSize) -> Learned:
        """One optimizer step over the groups that have a gradient; others may tell how far the policy went.

        ``size`` counts the unmixed ones too, so that a step with few mixed groups moves less.
        """
        config = self._config
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * min((self.step + 1) / max(config.warmup_steps, 1), 1.0)
        loss = drift = kl = norm = 0.0
        clipped = trained = seen = 0
        for lesson in taught:
            learns = lesson.has_gradient or config.beta > 0
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
                    clipped, trained = clipped + terms.clipped, trained + terms.tokens
                loss, kl = loss + float(terms.total.detach()), kl + terms.kl
                drift, seen = drift + terms.drift, seen + terms.tokens
        if trained:
            norm = float(torch.nn.utils.clip_grad_norm_(self._policy.trainable(), config.max_grad_norm))
            require_finite(norm, self.step + 1)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Learned(loss, norm, drift / max(seen, 1), kl / max(seen, 1), clipped / max(trained, 1))

    def _reference(self, batch: PackedBatch) -> Tensor | None:
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
        raise TrainingError(f"step {step}: the gradient is not finite; lower learning_rate")
