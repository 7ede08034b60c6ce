"""TRL's trainer takes the same steps as envkit's trainer on the same episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from envkit.errors import SandboxError, TrainingError
from envkit.models import ModelRef
from envkit.rollout import Rollouts
from envkit.runtime.store import Journal
from envkit.training import trl_backend
from envkit.training.checkpoint import CheckpointStore
from envkit.training.config import TrainConfig
from envkit.training.groups import TrainingGroup
from envkit.training.grpo import GRPOTrainer
from envkit.training.learner.packing import TrainingRow
from envkit.training.metrics import StepMetrics
from envkit.training.policy import Policy
from envkit.training.rollouts import RolloutCollector, StepRollouts
from envkit.training.trl_backend import TRLTrainer, _padded

CONFIG = dataclasses.replace(tiny.TRAINING, max_steps=3)
TASKS = tiny.letter_tasks("abcdefg")
Make = Callable[..., Any]


@pytest.fixture
def make(ref: ModelRef, tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as stack:

        def trainer(
            kind: type[GRPOTrainer] | type[TRLTrainer],
            name: str,
            policy: Policy,
            config: TrainConfig = CONFIG,
            broken: frozenset[int] = frozenset(),
        ) -> Any:
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            backend = tiny.MemoryBackend(broken)
            rollouts = stack.enter_context(
                Rollouts(lambda: tiny.LetterEnv(tasks=TASKS, sandbox=backend, max_turns=2), workers=1)
            )
            metrics, episodes = (
                stack.enter_context(Journal(folder / name)) for name in ("metrics", "episodes")
            )
            collector = RolloutCollector(policy, TASKS, rollouts, config, episodes)
            return kind(collector, metrics, CheckpointStore(folder / "checkpoints"))

        yield trainer


def train(trainer: Any, until: int | None = None) -> list[StepMetrics]:
    seen: list[StepMetrics] = []

    def on_step(metrics: StepMetrics) -> bool:
        seen.append(metrics)
        return metrics.step != until

    trainer.train(on_step)
    return seen


def weight_change(policy: Policy, before: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([(a - b).flatten() for a, b in zip(tiny.weights(policy), before, strict=True)])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss_type": "grpo"},
        {"loss_type": "dr_grpo"},
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"beta": 0.5},
        {"max_kl": 100.0},
        {"groups_per_step": 9},  # there are seven tasks
        {"groups_per_step": 9, "loss_type": "grpo"},
        {"shaping": {"says_it": 0.5}},
        {"groups_per_step": 2, "temperature": 0.7},
    ],
    ids=str,
)
def test_a_step_equals_that_of_the_own_trainer(make: Make, ref: ModelRef, changes: dict[str, Any]) -> None:
    require_equal_steps(make, ref, dataclasses.replace(CONFIG, max_steps=1, **changes))


def test_dropout_is_off_as_while_sampling(make: Make, tmp_path: Path) -> None:
    ref = tiny.make(tmp_path / "model", attention_dropout=0.5)
    require_equal_steps(make, ref, dataclasses.replace(CONFIG, max_steps=1, beta=0.5))


def require_equal_steps(make: Make, ref: ModelRef, config: TrainConfig) -> None:
    """Take one step with each trainer, and compare metrics and weights."""
    steps: list[StepMetrics] = []
    weight_changes: list[torch.Tensor] = []
    for kind in (GRPOTrainer, TRLTrainer):
        policy = tiny.policy(ref, noise=0.1)
        before = tiny.weights(policy)
        steps += train(make(kind, kind.__name__, policy, config))
        weight_changes.append(weight_change(policy, before))
    ours, theirs = (dataclasses.asdict(each) for each in steps)
    assert ours["mixed"] > 0
    for name in ("step", "reward", "mixed", "void", "entropy", "completion_tokens"):
        assert ours[name] == theirs[name]
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3, abs=1e-4)
    assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)
    assert theirs["kl"] == pytest.approx(ours["kl"], rel=1e-3)
    assert (ours["kl"] > 0) == config.needs_reference
    assert max(ours["drift"], theirs["drift"]) < 1e-4
    # Adam's first step has the size of the learning rate for every weight, whatever its gradient's size.
    assert float((weight_changes[0] - weight_changes[1]).norm() / weight_changes[0].norm()) < 0.05


def test_a_resumed_run_ends_with_the_bits_of_a_straight_one(make: Make, ref: ModelRef) -> None:
    config = CONFIG
    straight, stopped = (tiny.policy(ref, seed=2) for _ in range(2))
    whole = train(make(TRLTrainer, "straight", straight, config))
    first = train(make(TRLTrainer, "stopped", stopped, config), until=1)
    again = tiny.policy(ref, seed=2)
    second = make(TRLTrainer, "stopped", again, config)
    assert second.resume()
    later = train(second)
    assert [each.step for each in whole] == [each.step for each in first + later] == [1, 2, 3]
    assert [each.reward for each in whole] == [each.reward for each in first + later]
    assert tiny.equal(tiny.weights(straight), tiny.weights(again))


def test_the_last_step_may_change_before_training_and_between_steps(make: Make, ref: ModelRef) -> None:
    trainer = make(TRLTrainer, "run", tiny.policy(ref), dataclasses.replace(CONFIG, max_steps=1))
    trainer.last_step, seen = 2, list[int]()

    def on_step(metrics: StepMetrics) -> bool:
        seen.append(metrics.step)
        trainer.last_step = 3
        return True

    trainer.train(on_step)
    assert seen == [1, 2, 3]


def test_void_episodes_are_counted_and_too_many_end_training(make: Make, ref: ModelRef) -> None:
    config, policy = dataclasses.replace(CONFIG, max_steps=1, max_turns=1), tiny.policy(ref)
    before = tiny.weights(policy)
    with pytest.raises(SandboxError, match="12 of 12 episodes are void"):
        train(make(TRLTrainer, "all", policy, config, broken=frozenset(range(99))))
    assert tiny.equal(before, tiny.weights(policy))
    (metrics,) = train(make(TRLTrainer, "one", policy, config, broken=frozenset({1, 2})))
    assert metrics.void == pytest.approx(1 / 12)
    assert not tiny.equal(before, tiny.weights(policy))


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
def test_void_episodes_are_not_counted_in_the_loss_denominator(
    make: Make, ref: ModelRef, loss_type: str
) -> None:
    config = dataclasses.replace(CONFIG, max_steps=1, loss_type=loss_type)
    ours, theirs = (
        train(make(kind, kind.__name__, tiny.policy(ref, noise=0.1), config, broken=frozenset({1, 2, 7})))[0]
        for kind in (GRPOTrainer, TRLTrainer)
    )
    assert ours.void == theirs.void > 0
    assert theirs.loss == pytest.approx(ours.loss, rel=1e-3, abs=1e-5)
    assert theirs.grad_norm == pytest.approx(ours.grad_norm, rel=1e-3) != 0


def test_a_gradient_that_is_not_finite_ends_the_run_without_changing_weights(
    make: Make, ref: ModelRef
) -> None:
    policy = tiny.policy(ref)
    train(make(TRLTrainer, "run", policy), until=1)
    for parameter in policy.trainable():
        parameter.register_hook(lambda grad: grad * float("nan"))
    before = tiny.weights(policy)
    trainer = make(TRLTrainer, "run", policy)
    trainer.resume()
    assert train(trainer) == []
    assert trainer.alarm == "step 2: the gradient is not finite; lower learning_rate"
    assert tiny.equal(before, tiny.weights(policy))


def test_the_last_finished_step_is_saved_whatever_ends_training(
    make: Make, ref: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(TRLTrainer, "run", tiny.policy(ref), dataclasses.replace(CONFIG, save_steps=5))
    collect = RolloutCollector.collect

    def failing(collector: RolloutCollector, step: int) -> StepRollouts:
        if step == 2:
            raise MemoryError
        return collect(collector, step)

    monkeypatch.setattr(RolloutCollector, "collect", failing)
    with pytest.raises(MemoryError):
        train(trainer)
    assert trainer.store.steps() == [2]


def test_exceeding_max_kl_ends_the_run(make: Make, ref: ModelRef) -> None:
    trainer = make(TRLTrainer, "run", tiny.policy(ref), dataclasses.replace(CONFIG, max_kl=1e-9))
    assert len(train(trainer)) == 2  # in the first step the policy equals its base
    assert "nats per token away from its base" in trainer.alarm


def test_conversations_that_branch_are_refused() -> None:
    row = TrainingRow((5, 6), (True, True), (0.0, 0.0), (1.0, 1.0), {1: 0})
    with pytest.raises(TrainingError, match="cannot train conversations that branch"):
        _padded([TrainingGroup((1,), [row], True, True)], 1, 0)


@pytest.mark.parametrize("changes", [{}, {"max_kl": 100.0}], ids=str)
def test_a_step_that_nothing_is_learned_from_leaves_the_weights(
    make: Make, ref: ModelRef, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """The optimizer's momentum, of the step before, would move them."""
    seen: list[list[torch.Tensor]] = []
    policy = tiny.policy(ref, noise=0.1)
    real = trl_backend.training_groups

    def without_advantages(row: TrainingRow) -> TrainingRow:
        return dataclasses.replace(row, advantages=(0.0,) * len(row.advantages))

    def groups(rollouts: Any, config: TrainConfig) -> Any:
        seen.append(tiny.weights(policy))
        found = real(rollouts, config)
        if len(seen) == 1:
            return found
        return [
            dataclasses.replace(group, has_gradient=False, rows=[*map(without_advantages, group.rows)])
            for group in found
        ]

    monkeypatch.setattr(trl_backend, "training_groups", groups)
    train(make(TRLTrainer, "trl", policy, dataclasses.replace(CONFIG, max_steps=2, **changes)))
    assert not all(torch.equal(one, other) for one, other in zip(*seen, strict=True)), "the first step learns"
    assert all(torch.equal(one, other) for one, other in zip(seen[1], tiny.weights(policy), strict=True))
