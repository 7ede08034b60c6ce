"""LoRA reinforcement learning, the whole loop: pick tasks, play, compare within groups, step.

GRPO (arXiv:2402.03300) without standard-deviation scaling (arXiv:2503.20783), token-level loss
(arXiv:2503.14476), no KL term. One gradient step per batch of rollouts, on the exact tokens and
log-probabilities that were recorded while sampling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import final

import torch

from envkit.agents.local import LocalAgent
from envkit.engine.protocol import Sampling
from envkit.errors import ContractError, TrainingError
from envkit.rollout import Rollouts
from envkit.store import Journal, trajectory_to_json
from envkit.train import checkpoint
from envkit.train.advantages import group_advantages
from envkit.train.config import TrainConfig
from envkit.train.curriculum import Curriculum
from envkit.train.loss import clipped_loss, logprobs
from envkit.train.packing import Row, chunks, merge, pack, row_of
from envkit.train.policy import Policy
from envkit.types import EpisodeKey, Outcome, Task, Trajectory


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one step did.

    Args:
        step: 1-based.
        reward: mean over episodes that are not void.
        mixed: share of groups with more than one outcome, the only ones that teach.
        void: share of episodes whose machinery broke.
        loss: the step's loss.
        grad_norm: before clipping.
        drift: mean |log-probability in the learner - when sampled| per token, in nats.
        clipped: share of trained tokens outside the clip range.
        entropy: mean -log-probability of the sampled tokens, in nats.
        completion_tokens: tokens sampled in episodes that are not void.
        rollout_s, learn_s: wall seconds.
    """

    step: int
    reward: float
    mixed: float
    void: float
    loss: float
    grad_norm: float
    drift: float
    clipped: float
    entropy: float
    completion_tokens: int
    rollout_s: float
    learn_s: float


@final
class GRPOTrainer:
    """The loop and its state. `train` runs it; a checkpoint holds all that it needs to go on.

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
        if held := next((task for task in tasks if task.split != "train"), None):
            raise TrainingError(f"task {held.id} is of split {held.split!r}; only 'train' may be trained on")
        self._policy, self._rollouts, self._config = policy, rollouts, config
        self._metrics, self._episodes, self._store = metrics, episodes, store
        self._curriculum = Curriculum(tasks, config.seed, estimates)
        self._optimizer = torch.optim.AdamW(
            policy.trainable(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        sampling = Sampling(config.temperature, config.max_completion_length)
        self._agent = LocalAgent("policy", policy.engine, policy.renderer, sampling)
        self.step = 0

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint, if there is one."""
        state = self._store.load(self._policy, self._optimizer)
        if state is None:
            return False
        self.step = int(state["step"])
        self._curriculum.restore(state["curriculum"])
        return True

    def train(self, go_on: Callable[[StepMetrics], bool]) -> None:
        """Run until ``config.max_steps``, or until ``go_on`` says False after a step.

        The last state is always checkpointed.
        """
        while self.step < self._config.max_steps:
            metrics = self._one_step()
            self._metrics.append({"phase": "rl", **asdict(metrics)})
            wanted = go_on(metrics)
            if not wanted or self.step % self._config.save_steps == 0 or self.step == self._config.max_steps:
                self.save()
            if not wanted:
                return

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        state = {"step": self.step, "curriculum": self._curriculum.state()}
        self._store.save(self.step, self._policy, self._optimizer, state)

    def _one_step(self) -> StepMetrics:
        started = time.monotonic()
        self._policy.sync()
        groups = self._play()
        self._episodes.sync()  # logged before use
        played = time.monotonic()
        batches = self._learnable(groups)
        trajectories = [t for group in groups for t in group]
        valid = [t for t in trajectories if t.outcome is not Outcome.VOID]
        logged = [lp for t in valid for s in t.steps if s.turn.tokens for lp in s.turn.tokens.logprobs]
        loss, grad_norm, drift, clipped = self._learn(batches, len(logged))
        self.step += 1
        return StepMetrics(
            step=self.step,
            reward=sum(t.reward for t in valid) / max(len(valid), 1),
            mixed=len(batches) / max(len(groups), 1),
            void=1 - len(valid) / max(len(trajectories), 1),
            loss=loss,
            grad_norm=grad_norm,
            drift=drift,
            clipped=clipped,
            entropy=-sum(logged) / max(len(logged), 1),
            completion_tokens=len(logged),
            rollout_s=played - started,
            learn_s=time.monotonic() - played,
        )

    def _play(self) -> list[list[Trajectory]]:
        """Play one group per picked task and log every episode."""
        config, size = self._config, self._config.num_generations
        picked = self._curriculum.pick(self.step, config.groups_per_step)
        keys = [
            EpisodeKey(config.seed, self.step, group, row, task)
            for group, task in enumerate(picked)
            for row in range(size)
        ]
        played = self._rollouts.play(self._agent, keys)
        groups = [played[start : start + size] for start in range(0, len(played), size)]
        for task, group in zip(picked, groups, strict=True):
            for trajectory in group:
                self._episodes.append({"phase": "rl", **trajectory_to_json(trajectory)})
            valid = [t for t in group if t.outcome is not Outcome.VOID]
            self._curriculum.record(self.step, task, sum(t.solved for t in valid), len(valid))
        return groups

    def _learnable(self, groups: Sequence[Sequence[Trajectory]]) -> list[tuple[tuple[int, ...], list[Row]]]:
        """(prompt ids, rows) of every mixed group. The others have no gradient."""
        learnable: list[tuple[tuple[int, ...], list[Row]]] = []
        for group in groups:
            valid = [t for t in group if t.outcome is not Outcome.VOID]
            if not valid:
                continue
            advantages = group_advantages([t.reward for t in valid]).tolist()
            if not any(advantages):
                continue
            rows = [row_of(t, a) for t, a in zip(valid, advantages, strict=True)]
            prompts = {t.steps[0].turn.tokens.prompt_ids for t in valid if t.steps[0].turn.tokens}
            if len(prompts) > 1:
                raise ContractError(
                    f"environment {valid[0].env} began one visit of task {valid[0].key.task} with different "
                    "observations; what reset() shows must follow from task and seed"
                )
            learnable.append((prompts.pop(), merge(rows)))
        return learnable

    def _learn(
        self, batches: Sequence[tuple[tuple[int, ...], list[Row]]], tokens: int
    ) -> tuple[float, float, float, float]:
        """One optimizer step over all groups; returns loss, gradient norm, drift, clipped share.

        ``tokens`` counts the unmixed groups too, so that a step with few mixed groups moves less.
        """
        config = self._config
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * min((self.step + 1) / max(config.warmup_steps, 1), 1.0)
        loss = drift = 0.0
        clipped = trained = 0
        for prompt, rows in batches:
            for chunk in chunks(prompt, rows, config.max_tokens_per_forward):
                batch = pack(prompt, chunk)
                terms = clipped_loss(
                    logprobs(self._policy.model, batch, config.temperature), batch, config.epsilon
                )
                (terms.total / tokens).backward()
                loss += float(terms.total.detach()) / tokens
                drift, clipped, trained = drift + terms.drift, clipped + terms.clipped, trained + terms.tokens
        norm = 0.0
        if trained:
            norm = float(torch.nn.utils.clip_grad_norm_(self._policy.trainable(), config.max_grad_norm))
            if not torch.isfinite(torch.tensor(norm)):
                raise TrainingError(
                    f"step {self.step + 1}: the gradient is not finite; lower learning_rate. "
                    "The last checkpoint is whole."
                )
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss, norm, drift / max(trained, 1), clipped / max(trained, 1)
