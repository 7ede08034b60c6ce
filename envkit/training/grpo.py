"""LoRA reinforcement learning with GRPO: the whole training loop.

GRPO (arXiv:2402.03300) without standard-deviation scaling (arXiv:2503.20783), a token-level loss by default
(DAPO, arXiv:2503.14476), and one advantage per turn. Each batch of rollouts gives one gradient step, or
``num_iterations`` of them, on the exact tokens and log-probabilities that were recorded while sampling.
"""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor

from envkit.errors import TrainingError
from envkit.runtime.stop import raise_if_stopped
from envkit.runtime.store import Journal
from envkit.training.checkpoint import CheckpointStore
from envkit.training.groups import TrainingGroup, training_groups
from envkit.training.learner.heap import HeapLimit
from envkit.training.learner.logprobs import PrefilledPrompt
from envkit.training.learner.loss import StepSize, policy_loss
from envkit.training.learner.memory import tokens_per_forward
from envkit.training.learner.packing import PackedBatch, chunks, pack
from envkit.training.metrics import StepMetrics, UpdateMetrics, alarm_of, joined, step_metrics
from envkit.training.rollouts import RolloutCollector, StepRollouts

#: Called after every step; training stops after a step for which it returns False.
OnStep = Callable[[StepMetrics], bool]


class Trainer(ABC):
    """State and bookkeeping of a training run; a subclass implements the loop.

    Args:
        collector: plays the episodes. Its policy is trained in place, with its configuration.
        metrics: journal with one record per step.
        store: checkpoints.
    """

    def __init__(self, collector: RolloutCollector, metrics: Journal, store: CheckpointStore) -> None:
        self.collector, self._metrics, self.store = collector, metrics, store
        self._policy, self._config = collector.policy, collector.config
        self._max_tokens = tokens_per_forward(self._policy.ref, self._config)
        self._optimizer = torch.optim.AdamW(
            self._policy.trainable(), lr=self._config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        #: Steps taken so far, and number of the last one to take, which may be changed between steps.
        self.step, self.last_step = 0, self._config.max_steps
        #: Curriculum state after `step`. That of an unfinished step is never saved.
        self._curriculum = collector.curriculum.state()
        #: Why training must not continue; empty if nothing is wrong.
        self.alarm = ""
        #: Weights and optimizer state before the first of a step's several updates.
        self._before: tuple[list[Tensor], dict[str, Any]] | None = None
        #: True once an update has begun: the weights may no longer be those of `step`.
        self._has_moved = False

    @abstractmethod
    def train(self, on_step: OnStep) -> None:
        """Train until `last_step`, an `alarm`, or until ``on_step`` returns False.

        If a step diverges, `alarm` says why, the last good step is saved, and this returns. After any other
        error, the last finished step is saved and the error raised; a resumed run takes the step again. If an
        update had begun and cannot be undone, nothing is saved: resuming starts at the last checkpoint.

        Raises:
            Stopped: see `Rollouts.play`.
            EnvkitError: the step's episodes could not be played or learned from.
            RuntimeError, MemoryError: of PyTorch and Python, for lack of memory for example.
        """

    def resume(self) -> bool:
        """Restore the newest checkpoint. Returns False if there is none."""
        state = self.store.load(self._policy, self._optimizer)
        if state is None:
            return False
        self.step, self.alarm = int(state["step"]), self.store.alarm()
        self.collector.curriculum.restore(state["curriculum"])
        self._curriculum = state["curriculum"]
        return True

    def is_done(self) -> bool:
        """True if all steps are taken or an alarm ended training."""
        return self.step >= self.last_step or bool(self.alarm)

    def finish_step(self, metrics: StepMetrics, on_step: OnStep) -> bool:
        """Report a step, make it final and, if due, save it. Returns True if training continues."""
        wants_more = on_step(metrics)
        self.commit_step(metrics)
        if self.is_save_due(wants_more):
            self.save()
        return wants_more and not self.is_done()

    def commit_step(self, metrics: StepMetrics) -> None:
        """Make a step final: count it, write it to the journal, and check it for an alarm."""
        self.step, self._curriculum, self._before = metrics.step, self.collector.curriculum.state(), None
        self._has_moved = False
        self._metrics.append({"phase": "rl", **asdict(metrics)})
        self.alarm = alarm_of(metrics, self._config)

    def is_save_due(self, wants_more: bool) -> bool:
        """True if the current step must be saved: every ``save_steps``, and when training ends."""
        return not wants_more or self.is_done() or self.step % self._config.save_steps == 0

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        state = {"step": self.step, "curriculum": self._curriculum, "alarm": self.alarm}
        self.store.save(self.step, self._policy, self._optimizer, state)

    def drop_step(self) -> None:
        """Undo an unfinished step; save the last finished one, unless its weights cannot be restored."""
        self._undo_updates()
        self._optimizer.zero_grad(set_to_none=True)
        if self.step and not self._has_moved:
            self.save()

    def fail(self, reason: str) -> None:
        """End training because the next step failed: save the last good step and the reason."""
        self._undo_updates()
        self.save()
        self.store.record_failure(reason)
        self.alarm = reason

    def before_updates(self) -> None:
        """Remember the state before a step of several updates: a stop between them drops the whole step."""
        if self._config.num_iterations > 1:
            weights = [parameter.detach().clone() for parameter in self._policy.trainable()]
            self._before = weights, copy.deepcopy(self._optimizer.state_dict())

    def begin_update(self) -> None:
        """Note that the weights are no longer those of the last finished step. Called before they change."""
        self._has_moved = True

    def _undo_updates(self) -> None:
        if self._before is not None:
            weights, optimizer = self._before
            with torch.no_grad():
                for parameter, before in zip(self._policy.trainable(), weights, strict=True):
                    parameter.copy_(before)
            self._optimizer.load_state_dict(optimizer)
            self._before, self._has_moved = None, False


@dataclass(frozen=True, slots=True)
class Gradient:
    """One step's accumulated gradient. Its values are in the adapter's parameters.

    Args:
        rollouts, groups: what it was computed from.
        metrics: measured on the way; ``grad_norm`` is still 0.
        is_trained: False if no group has a gradient.
        seconds: time it took.
    """

    rollouts: StepRollouts
    groups: Sequence[TrainingGroup]
    metrics: UpdateMetrics
    is_trained: bool
    seconds: float


@final
class GRPOTrainer(Trainer):
    """The training loop on one machine."""

    def train(self, on_step: OnStep) -> None:
        heap = HeapLimit()
        while not self.is_done():
            try:
                rollouts = self.collector.collect(self.step)  # pick tasks, play a group of episodes of each
                self.before_updates()
                updates = [
                    self.update(self.backward(rollouts))  # advantages, loss; one optimizer step
                    for _ in range(self._config.num_iterations)
                ]
            except TrainingError as error:
                self.fail(str(error))
                return
            except Exception:  # also `Stopped`, and too little memory
                self.drop_step()
                raise
            heap.after_step()
            if not self.finish_step(joined(updates), on_step):  # log, save
                return

    def backward(self, rollouts: StepRollouts) -> Gradient:
        """Accumulate the gradient of one step's rollouts. The weights are unchanged.

        Raises:
            Stopped: the user asked to stop.
        """
        started, config, should_stop = time.monotonic(), self._config, self.collector.rollouts.should_stop
        groups = training_groups(rollouts, config)
        # Groups without a gradient count here too: a step with few mixed groups moves less.
        size = StepSize(len(rollouts.sampled_logprobs()), len(rollouts.valid()))
        loss = drift = kl = 0.0
        clipped = trained = seen = 0
        for group in groups:
            learns = group.has_gradient or config.beta > 0
            if not learns and not config.needs_reference:
                continue
            raise_if_stopped(should_stop)
            with torch.set_grad_enabled(learns):
                prompt = self._policy.prefill(group.prompt)
            reference = self._prefill_reference(group.prompt)
            for chunk in chunks(group.prompt, group.rows, self._max_tokens):
                raise_if_stopped(should_stop)
                batch = pack(group.prompt, chunk, self._policy.device)
                reference_N = self._reference_logprobs(batch, reference)
                with torch.set_grad_enabled(learns):
                    new_N = self._policy.logprobs(batch, config.temperature, prompt)
                    terms = policy_loss(new_N, batch, size, config, reference_N)
                if learns:
                    raise_if_stopped(should_stop)
                    terms.total.backward()
                    clipped, trained = clipped + terms.clipped, trained + terms.tokens
                loss, kl = loss + float(terms.total.detach()), kl + terms.kl
                drift, seen = drift + terms.drift, seen + terms.tokens
            prompt.backward()
        metrics = UpdateMetrics(loss, 0.0, drift / max(seen, 1), kl / max(seen, 1), clipped / max(trained, 1))
        return Gradient(rollouts, groups, metrics, trained > 0, time.monotonic() - started)

    def update(self, gradient: Gradient) -> StepMetrics:
        """Take one optimizer step with an accumulated gradient.

        Raises:
            TrainingError: the gradient is not finite. The weights are unchanged.
        """
        started, config, step, grad_norm = time.monotonic(), self._config, self.step + 1, 0.0
        for settings in self._optimizer.param_groups:
            settings["lr"] = config.learning_rate * min(step / max(config.warmup_steps, 1), 1.0)
        if gradient.is_trained:
            grad_norm = float(torch.nn.utils.clip_grad_norm_(self._policy.trainable(), config.max_grad_norm))
            require_finite(grad_norm, step)
            self.begin_update()
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        metrics = gradient.metrics._replace(grad_norm=grad_norm)
        seconds = gradient.seconds + time.monotonic() - started
        return step_metrics(step, gradient.rollouts, gradient.groups, metrics, seconds)

    def _prefill_reference(self, prompt: Sequence[int]) -> PrefilledPrompt | None:
        """Prefill a prompt without the adapter; ``None`` if the loss does not need it."""
        if not self._config.needs_reference:
            return None
        with torch.no_grad(), self._policy.model.disable_adapter():
            return self._policy.prefill(prompt)

    def _reference_logprobs(self, batch: PackedBatch, prompt: PrefilledPrompt | None) -> Tensor | None:
        """Log-probabilities under the model without its adapter; ``None`` without its prompt."""
        if prompt is None:
            return None
        with torch.no_grad(), self._policy.model.disable_adapter():
            return self._policy.logprobs(batch, self._config.temperature, prompt)


def require_finite(grad_norm: float, step: int, setting: str = "learning_rate") -> None:
    """Refuse a step whose gradient is not finite. ``setting`` is the learning rate's name.

    Raises:
        TrainingError: see above.
    """
    if not math.isfinite(grad_norm):
        raise TrainingError(f"step {step}: the gradient is not finite; lower {setting}")
