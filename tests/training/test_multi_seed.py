"""Several seeds trained at once on one base: batched together, with the results of separate runs."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
import tiny
import torch
from stops import stop_after

from envkit.engine.protocol import Request, Sampling
from envkit.errors import Stopped, StoreError, TrainingError
from envkit.models import ModelRef
from envkit.rollout import Rollouts
from envkit.runtime.store import Journal, read_lines
from envkit.training.checkpoint import CheckpointStore
from envkit.training.grpo import Gradient, GRPOTrainer
from envkit.training.metrics import StepMetrics
from envkit.training.multi_seed import resume_seeds, train_seeds
from envkit.training.rollouts import RolloutCollector

CONFIG = dataclasses.replace(tiny.TRAINING, seed=0)
TASKS = tiny.letter_tasks("abcdefg")
SEEDS = (5, 6, 9)


class Make(Protocol):
    """Makes one trainer per seed, each in its own folder. Called again, it stands in for a second process."""

    def __call__(self, folder: Path, seeds: Sequence[int] = SEEDS, **changes: Any) -> list[GRPOTrainer]: ...


@pytest.fixture
def make(ref: ModelRef) -> Iterator[Make]:
    with ExitStack() as stack:

        def trainers(folder: Path, seeds: Sequence[int] = SEEDS, **changes: Any) -> list[GRPOTrainer]:
            backend, first = tiny.MemoryBackend(), tiny.policy(ref, seed=seeds[0])
            rollouts = stack.enter_context(
                Rollouts(lambda: tiny.LetterEnv(tasks=TASKS, sandbox=backend, max_turns=CONFIG.max_turns))
            )
            made: list[GRPOTrainer] = []
            for number, seed in enumerate(seeds):
                own = folder / str(seed)
                own.mkdir(parents=True, exist_ok=True)
                policy = first if number == 0 else first.sibling(seed)
                config = dataclasses.replace(CONFIG, seed=seed, **changes)
                metrics, episodes = (
                    stack.enter_context(Journal(own / name)) for name in ("metrics.jsonl", "episodes.jsonl")
                )
                collector = RolloutCollector(policy, TASKS, rollouts, config, episodes)
                made.append(GRPOTrainer(collector, metrics, CheckpointStore(own / "checkpoints")))
            return made

        yield trainers


def train(trainers: Sequence[GRPOTrainer]) -> list[list[StepMetrics]]:
    metrics: list[list[StepMetrics]] = [[] for _ in trainers]

    def on_step(number: int, one: StepMetrics) -> bool:
        metrics[number].append(one)
        return True

    train_seeds(trainers, on_step)
    return metrics


def weights(trainers: Sequence[GRPOTrainer]) -> list[list[torch.Tensor]]:
    return [tiny.weights(trainer.collector.policy) for trainer in trainers]


def test_siblings_share_the_base_and_have_separate_adapters(ref: ModelRef, tmp_path: Path) -> None:
    first = tiny.policy(ref, noise=0.1)
    second = first.sibling(7)
    assert second.engine is first.engine
    own = {id(weight) for weight in second.trainable()}
    theirs = {id(weight) for weight in first.model.parameters()}
    assert {id(weight) for weight in second.model.parameters()} - theirs == own
    assert tiny.equal(tiny.weights(second), tiny.weights(tiny.policy(ref, seed=7)))
    requests = [Request(tiny.prompt(9, seed=2), (row,), adapter=row % 2) for row in range(6)]
    first.sync(second)
    both = first.engine.generate(requests, Sampling(1.0, 5))
    second.sync()
    alone = second.engine.generate(
        [dataclasses.replace(each, adapter=0) for each in requests], Sampling(1.0, 5)
    )
    assert [c.ids for c in both[1::2]] == [c.ids for c in alone[1::2]]
    assert [c.ids for c in both[::2]] != [c.ids for c in alone[::2]]
    second.save_adapter(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("iterations", [1, 2])
def test_each_seed_trains_as_it_would_alone(make: Make, tmp_path: Path, iterations: int) -> None:
    seeds = (4, 7, 8)  # for which no draw is so close that another batch's rounding changes it
    together = make(tmp_path / "together", seeds, num_iterations=iterations)
    before = weights(together)
    metrics = train(together)
    for number, seed in enumerate(seeds):
        alone = make(tmp_path / "alone", [seed], num_iterations=iterations)
        alone[0].train(lambda _: True)
        played_together, played_alone = (
            [(t["key"], [step["turn"]["text"] for step in t["steps"]]) for t in read_lines(file)]
            for file in (tmp_path / where / str(seed) / "episodes.jsonl" for where in ("together", "alone"))
        )
        assert played_together == played_alone
        for a, b in zip(weights(together)[number], weights(alone)[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
        assert not tiny.equal(before[number], weights(together)[number])
        assert max(one.drift for one in metrics[number]) < 1e-4
    assert not tiny.equal(*weights(together)[:2])


def test_resuming_from_the_last_common_step_gives_the_same_bits(make: Make, tmp_path: Path) -> None:
    straight = make(tmp_path / "straight")
    train(straight)
    folder = tmp_path / "stopped"
    train_seeds(make(folder), lambda _, metrics: metrics.step < 3)
    # As if the process was killed after the first seed had saved its third step and before the others did.
    for seed in SEEDS[1:]:
        shutil.rmtree(folder / str(seed) / "checkpoints" / "step-000003")
    again = make(folder)
    resume_seeds(again)
    assert [trainer.step for trainer in again] == [2, 2, 2]
    train(again)
    for one, other in zip(weights(again), weights(straight), strict=True):
        assert tiny.equal(one, other)


@pytest.mark.parametrize(
    ("polls", "iterations"),
    [
        (45, 1),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((20, 1), (45, 2))),
        *(pytest.param(*each, marks=pytest.mark.nightly) for each in ((70, 1), (60, 2))),
    ],
)
def test_a_stop_within_a_step_leaves_all_seeds_at_the_same_step(
    make: Make, tmp_path: Path, polls: int, iterations: int
) -> None:
    straight = make(tmp_path / "straight", num_iterations=iterations)
    train(straight)
    stopped = make(tmp_path / "stopped", save_steps=9, num_iterations=iterations)
    stopped[0].collector.rollouts.should_stop = stop_after(polls)
    with pytest.raises(Stopped):
        train(stopped)
    again = make(tmp_path / "stopped", num_iterations=iterations)
    resume_seeds(again)
    assert {trainer.step for trainer in again} == {stopped[0].step}
    train(again)
    for one, other in zip(weights(again), weights(straight), strict=True):
        assert tiny.equal(one, other)


def test_a_seed_that_runs_out_of_memory_after_another_was_updated_resumes_to_the_same_bits(
    make: Make, tmp_path: Path
) -> None:
    straight = make(tmp_path / "straight")
    train(straight)
    stopped = make(tmp_path / "stopped", save_steps=2)
    update = stopped[1].update

    def short_of_memory(gradient: Gradient) -> StepMetrics:
        if stopped[1].step == 3:
            raise RuntimeError("not enough memory")
        return update(gradient)

    stopped[1].update = short_of_memory  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="not enough memory"):
        train(stopped)
    again = make(tmp_path / "stopped")
    resume_seeds(again)
    assert {trainer.step for trainer in again} == {2}
    train(again)
    for one, other in zip(weights(again), weights(straight), strict=True):
        assert tiny.equal(one, other)


def test_training_restarts_if_one_seed_has_no_checkpoint(make: Make, tmp_path: Path) -> None:
    train_seeds(make(tmp_path), lambda *_: False)
    shutil.rmtree(tmp_path / "6" / "checkpoints")
    again = make(tmp_path)
    resume_seeds(again)
    assert [trainer.step for trainer in again] == [0, 0, 0]


def test_checkpoints_later_than_the_last_common_step_are_discarded(make: Make, tmp_path: Path) -> None:
    train(make(tmp_path))
    shutil.rmtree(tmp_path / "6" / "checkpoints" / "step-000004")
    again = make(tmp_path)
    resume_seeds(again)
    assert [trainer.store.steps()[-1] for trainer in again] == [3, 3, 3]
    checkpoints = tmp_path / "6" / "checkpoints"
    (checkpoints / "step-000003").rename(checkpoints / "step-000001")
    with pytest.raises(StoreError, match="the checkpoints of 3 seeds have no step in common"):
        resume_seeds(make(tmp_path))


def test_a_seed_whose_step_fails_ends_and_the_others_continue(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = make(tmp_path)
    update = GRPOTrainer.update

    def failing(trainer: GRPOTrainer, gradient: Gradient) -> StepMetrics:
        if trainer is trainers[1] and trainer.step == 2:
            raise TrainingError("the gradient is not finite")
        return update(trainer, gradient)

    monkeypatch.setattr(GRPOTrainer, "update", failing)
    assert [[one.step for one in own] for own in train(trainers)] == [[1, 2, 3, 4], [1, 2], [1, 2, 3, 4]]
    assert trainers[1].alarm == "the gradient is not finite"
    again = make(tmp_path)
    resume_seeds(again)
    assert [(one.step, one.alarm) for one in again] == [(4, ""), (2, "the gradient is not finite"), (4, "")]


@pytest.mark.parametrize("end_cause", ["by an error", "by an alarm"])
def test_the_other_seeds_save_before_the_end_of_one_is_recorded(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end_cause: str
) -> None:
    trainers, update = make(tmp_path, save_steps=9), GRPOTrainer.update
    events: list[tuple[int, int, bool]] = []

    def failing(trainer: GRPOTrainer, gradient: Gradient) -> StepMetrics:
        metrics = update(trainer, gradient)
        if trainer is not trainers[0] or trainer.step != 2:
            return metrics
        if end_cause == "by an error":
            raise TrainingError("the gradient is not finite")
        return dataclasses.replace(metrics, entropy=0.0)

    def save(store: CheckpointStore, step: int, *given: Any) -> None:
        original_save(store, step, *given)
        events.append((seed_of(store), step, bool(store.alarm())))

    def record_failure(store: CheckpointStore, reason: str) -> None:
        original_record(store, reason)
        events.append((seed_of(store), store.alarm_step(), bool(store.alarm())))

    def seed_of(store: CheckpointStore) -> int:
        return SEEDS[[one.store for one in trainers].index(store)]

    original_save, original_record = CheckpointStore.save, CheckpointStore.record_failure
    monkeypatch.setattr(GRPOTrainer, "update", failing)
    monkeypatch.setattr(CheckpointStore, "save", save)
    monkeypatch.setattr(CheckpointStore, "record_failure", record_failure)
    train(trainers)
    first = [(5, 2, False), (5, 3, True)] if end_cause == "by an error" else [(5, 3, True)]
    assert events == [(6, 3, False), (9, 3, False), *first, (6, 4, False), (9, 4, False)]


@pytest.mark.parametrize("end_cause", ["by an error", "by an alarm"])
def test_two_seeds_that_end_in_one_step_are_recorded_together_or_not_at_all(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end_cause: str
) -> None:
    update = GRPOTrainer.update

    def failing(trainer: GRPOTrainer, gradient: Gradient) -> StepMetrics:
        metrics = update(trainer, gradient)
        if trainer.collector.config.seed == SEEDS[2] or trainer.step != 2:
            return metrics
        if end_cause == "by an error":
            raise TrainingError("the gradient is not finite")
        return dataclasses.replace(metrics, entropy=0.0)

    class Killed(BaseException):
        pass

    def killed(store: CheckpointStore, *given: Any) -> None:
        if end_cause == "by an error" and SEEDS[1] == int(store.path(0).parents[1].name):
            raise Killed
        original_record(store, *given)

    def unsaved(store: CheckpointStore, step: int, *given: Any) -> None:
        if end_cause == "by an alarm" and step == 3 and SEEDS[1] == int(store.path(0).parents[1].name):
            raise Killed
        original_save(store, step, *given)

    original_save, original_record = CheckpointStore.save, CheckpointStore.record_failure
    monkeypatch.setattr(GRPOTrainer, "update", failing)
    monkeypatch.setattr(CheckpointStore, "record_failure", killed)
    monkeypatch.setattr(CheckpointStore, "save", unsaved)
    with pytest.raises(Killed):
        train(make(tmp_path, save_steps=2))
    monkeypatch.undo()
    again = make(tmp_path, save_steps=2)
    resume_seeds(again)
    assert [(trainer.step, trainer.alarm) for trainer in again] == [(2, "")] * 3
    assert [trainer.store.steps()[-1] for trainer in again] == [2, 2, 2]


def test_a_seed_ended_by_an_alarm_does_not_stop_the_others(make: Make, tmp_path: Path) -> None:
    trainers = make(tmp_path)
    train_seeds(trainers, lambda _, metrics: metrics.step < 2)
    trainers[1].fail("collapsed")
    metrics = train(trainers)
    assert [[one.step for one in own] for own in metrics] == [[3, 4], [], [3, 4]]
    again = make(tmp_path)
    resume_seeds(again)
    assert [(trainer.step, trainer.alarm) for trainer in again] == [(4, ""), (2, "collapsed"), (4, "")]
    assert train(again) == [[], [], []]


def test_duplicate_seeds_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"seeds \[5, 5\] are not distinct"):
        train(make(tmp_path, [5, 5]))
