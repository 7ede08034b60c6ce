"""The training loop on a toy environment: it learns, is reproducible, and resumes exactly."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import golden
import pytest
import tiny
import torch
from stops import stop_after

from envkit.env.authored import ActionResult
from envkit.env.checks import check
from envkit.errors import ContractError, SandboxError, Stopped, TrainingError
from envkit.models import ModelRef
from envkit.rollout import Rollouts
from envkit.runtime.store import Journal, read_lines, trajectory_from_json, trajectory_to_json
from envkit.training.checkpoint import CheckpointStore
from envkit.training.config import TrainConfig
from envkit.training.groups import training_groups
from envkit.training.grpo import Gradient, GRPOTrainer
from envkit.training.metrics import StepMetrics
from envkit.training.policy import Policy
from envkit.training.rollouts import RolloutCollector, StepRollouts
from envkit.types import Outcome, Task, Trajectory

CONFIG = tiny.TRAINING
TASKS = tiny.letter_tasks("abcdefg")

#: Makes a trainer in a folder. Called again, it stands in for a second process in that folder.
Make = Callable[..., GRPOTrainer]


@pytest.fixture
def make(ref: ModelRef) -> Iterator[Make]:
    with ExitStack() as stack:

        def trainer(
            folder: Path,
            config: TrainConfig = CONFIG,
            *,
            policy: Policy | None = None,
            tasks: Sequence[Task] = TASKS,
            broken: frozenset[int] = frozenset(),
            env: type[tiny.LetterEnv] = tiny.LetterEnv,
        ) -> GRPOTrainer:
            folder.mkdir(exist_ok=True)
            backend = tiny.MemoryBackend(broken)
            rollouts = stack.enter_context(
                # One worker, so that the order of backend calls is fixed.
                Rollouts(lambda: env(tasks=tasks, sandbox=backend, max_turns=config.turns), workers=1)
            )
            policy = policy or tiny.policy(ref, seed=config.seed)
            metrics, episodes = (
                stack.enter_context(Journal(folder / name)) for name in ("metrics.jsonl", "episodes.jsonl")
            )
            collector = RolloutCollector(policy, tasks, rollouts, config, episodes)
            return GRPOTrainer(collector, metrics, CheckpointStore(folder / "checkpoints"))

        yield trainer


def train(trainer: GRPOTrainer, until: int | None = None) -> list[StepMetrics]:
    seen: list[StepMetrics] = []

    def on_step(metrics: StepMetrics) -> bool:
        seen.append(metrics)
        return metrics.step != until

    trainer.train(on_step)
    return seen


def adapter(folder: Path) -> bytes:
    """Return the weights of the newest checkpoint."""
    store = CheckpointStore(folder / "checkpoints")
    return (store.path(store.steps()[-1]) / "adapter_model.safetensors").read_bytes()


def episodes(folder: Path) -> list[Trajectory]:
    """Return all episodes without their wall times."""
    found: list[Trajectory] = []
    for record in read_lines(folder / "episodes.jsonl"):
        trajectory = trajectory_from_json(record)
        steps = tuple(
            dataclasses.replace(
                step,
                turn=dataclasses.replace(step.turn, usage=dataclasses.replace(step.turn.usage, seconds=0.0)),
            )
            for step in trajectory.steps
        )
        found.append(dataclasses.replace(trajectory, steps=steps))
    return found


def without_times(metrics: Sequence[StepMetrics]) -> list[StepMetrics]:
    return [dataclasses.replace(each, rollout_s=0.0, learn_s=0.0) for each in metrics]


def test_golden_two_steps(make: Make, tmp_path: Path) -> None:
    metrics = train(make(tmp_path), until=2)
    played = [trajectory_to_json(each) for each in episodes(tmp_path)]
    golden.expect("train", {"metrics": [dataclasses.asdict(each) for each in metrics], "episodes": played})


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_gradient_does_not_depend_on_the_limit_of_tokens(
    make: Make, tmp_path: Path, ref: ModelRef, beta: float
) -> None:
    found: list[list[torch.Tensor]] = []
    for limit in (1, 10**6):
        config = dataclasses.replace(CONFIG, max_tokens_per_forward=limit, beta=beta)
        policy = tiny.policy(ref, noise=0.1)
        trainer = make(tmp_path / str(limit), config, policy=policy)
        trainer.backward(trainer.collector.collect(0))
        found.append([parameter.grad for parameter in policy.trainable() if parameter.grad is not None])
    assert found[0]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_reward_rises(make: Make, tmp_path: Path, seed: int) -> None:
    ref = tiny.make(tmp_path / "model", initializer_range=0.6)  # few likely tokens: quick to learn
    tasks = [dataclasses.replace(task, metadata={"letter": "e"}) for task in TASKS[:4]]
    config = TrainConfig(
        seed=seed, max_steps=14, learning_rate=5e-3, groups_per_step=4, max_completion_length=1, save_steps=99
    )
    seen = train(make(tmp_path / "run", config, policy=tiny.policy(ref), tasks=tasks))
    rewards = [metrics.reward for metrics in seen]
    assert sum(rewards[:2]) / 2 < 0.65
    assert sum(rewards[-3:]) / 3 > 0.85
    assert max(metrics.drift for metrics in seen) < 1e-4
    assert max(metrics.clipped for metrics in seen) == 0.0  # one step per batch: every ratio is 1


def test_the_same_seed_gives_the_same_bits(make: Make, tmp_path: Path) -> None:
    one, again, other = (tmp_path / name for name in ("one", "again", "other"))
    first = train(make(one))
    assert without_times(train(make(again))) == without_times(first)
    assert episodes(one) == episodes(again)
    assert adapter(one) == adapter(again)
    train(make(other, dataclasses.replace(CONFIG, seed=4)))
    assert episodes(one) != episodes(other)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_run_ends_with_the_bits_of_a_straight_one(make: Make, tmp_path: Path, cut: int) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    whole = train(make(straight))
    before = train(make(resumed), until=cut)
    second = make(resumed)
    assert second.resume()
    assert second.step == cut
    after = train(second)
    assert without_times(before + after) == without_times(whole)
    assert episodes(resumed) == episodes(straight)
    assert adapter(resumed) == adapter(straight)
    assert any(metrics.grad_norm > 0 for metrics in after)


def test_steps_after_the_last_checkpoint_are_repeated_identically(make: Make, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, save_steps=2)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(make(straight, config))

    def die(metrics: StepMetrics) -> bool:
        if metrics.step == 3:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        make(killed, config).train(die)
    second = make(killed, config)
    second.resume()
    assert second.step == 2
    train(second)
    assert adapter(killed) == adapter(straight)
    size = len(episodes(straight)) // 4
    assert episodes(killed)[: 3 * size] == episodes(straight)[: 3 * size]
    assert episodes(killed)[3 * size :] == episodes(straight)[2 * size :]


def test_resume_without_a_checkpoint_returns_false(make: Make, tmp_path: Path) -> None:
    assert not make(tmp_path / "run").resume()


def test_every_episode_is_logged_with_its_tokens(make: Make, tmp_path: Path) -> None:
    seen = train(make(tmp_path / "run"))
    logged = episodes(tmp_path / "run")
    assert len(logged) == 4 * 3 * 4
    assert [len(trajectory.steps) for trajectory in logged] == [2] * len(logged)
    for metrics in seen:
        mine = [t for t in logged if t.key.step == metrics.step - 1]
        tokens = [step.turn.tokens for t in mine for step in t.steps]
        assert metrics.completion_tokens == sum(len(each.completion_ids) for each in tokens if each)
        assert metrics.reward == pytest.approx(sum(t.reward for t in mine) / len(mine))
        groups = {group: {t.reward for t in mine if t.key.group == group} for group in range(3)}
        assert metrics.mixed == pytest.approx(sum(len(each) > 1 for each in groups.values()) / 3)
    records = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all(record["phase"] == "rl" for record in records)
    assert trajectory_from_json(json.loads(json.dumps(trajectory_to_json(logged[0])))) == logged[0]


def test_stopping_saves_a_checkpoint(make: Make, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, save_steps=100)
    train(make(tmp_path / "run", config), until=3)
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [3]


class NeverSolved(tiny.LetterEnv):
    """Never solved, with an unweighted check that can shape the reward."""

    @check()
    def says_it(self) -> bool:
        return False

    @check(weight=0)
    def has_an_e(self) -> bool:
        return "e" in self._said


def test_a_shaped_reward_gives_gradients_without_changing_the_reported_reward(
    make: Make, tmp_path: Path
) -> None:
    hopeless = dataclasses.replace(CONFIG, max_steps=1, max_completion_length=1)
    (plain,) = train(make(tmp_path / "plain", hopeless, env=NeverSolved))
    assert (plain.mixed, plain.grad_norm) == (0.0, 0.0)
    shaping = {"has_an_e": 0.5, "is_of_another_environment": 1.0}
    config = dataclasses.replace(hopeless, shaping=shaping)
    (shaped,) = train(make(tmp_path / "shaped", config, env=NeverSolved))
    assert shaped.reward == 0
    assert shaped.grad_norm > 0
    played, size = episodes(tmp_path / "shaped"), CONFIG.num_generations
    groups = [played[start : start + size] for start in range(0, len(played), size)]
    assert shaped.mixed == 0
    for group, lesson in zip(groups, training_groups(StepRollouts(groups, 0.0), config), strict=True):
        said = [trajectory.scores["has_an_e"] for trajectory in group]
        wanted = [0.5 * (each - sum(said) / size) for each in said]
        assert [row.advantages[0] for row in lesson.rows] == pytest.approx(wanted)
        assert [row.advantages[-1] for row in lesson.rows] == pytest.approx(wanted)
        caught = [dataclasses.replace(t, info={**t.info, "verdict": "TAMPERED"}) for t in group]
        assert not training_groups(StepRollouts([caught], 0.0), config)[0].has_gradient


def test_rejection_sampling_learns_from_all_solved_episodes_and_no_other(make: Make, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_steps=1, advantage="solved")
    (metrics,) = train(make(tmp_path / "run", config))
    played, size = episodes(tmp_path / "run"), CONFIG.num_generations
    groups = [played[start : start + size] for start in range(0, len(played), size)]
    lessons = training_groups(StepRollouts(groups, 0.0), config)
    for group, lesson in zip(groups, lessons, strict=True):
        for episode, row in zip(group, lesson.rows, strict=True):
            assert {*row.advantages} <= {float(episode.solved), 0.0}
        assert lesson.has_gradient == any(episode.solved for episode in group)
    assert {episode.solved for episode in played} == {True, False}
    assert metrics.grad_norm > 0


@pytest.mark.parametrize(
    ("split", "facts", "said"),
    [
        *((split, {}, repr(split)) for split in ("heldout", "", "Train")),
        ("train", {"evaluation_only": True}, "'train' and for evaluation only"),
    ],
)
def test_only_train_tasks_are_trained_on(
    make: Make, tmp_path: Path, split: str, facts: dict[str, Any], said: str
) -> None:
    held = dataclasses.replace(TASKS[2], split=split, metadata={**TASKS[2].metadata, **facts})
    with pytest.raises(TrainingError, match=f"task c is of split {said}; only 'train'"):
        make(tmp_path / "run", tasks=[*TASKS[:2], held])


def test_episodes_with_truncated_context_are_trained_without_drift(make: Make, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_steps=2, max_turns=4, max_context_length=70)
    metrics = train(make(tmp_path / "run", config))
    played = [[s.turn.tokens.kept for s in t.steps if s.turn.tokens] for t in episodes(tmp_path / "run")]
    assert any(any(kept) and not all(kept[1:]) for kept in played)
    assert max(step.drift for step in metrics) < 1e-4
    assert any(step.grad_norm for step in metrics)


def test_void_episodes_are_excluded_from_the_batch(make: Make, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_steps=1, groups_per_step=1, num_generations=6, max_turns=1)
    # The second row's sandbox fails, and again when retried.
    trainer = make(tmp_path / "run", config, broken=frozenset({1, 2}))
    (metrics,) = train(trainer)
    logged = episodes(tmp_path / "run")
    assert [t.key.row for t in logged if t.outcome is Outcome.VOID] == [1]
    valid = [t for t in logged if t.outcome is not Outcome.VOID]
    assert metrics.void == pytest.approx(1 / 6)
    assert metrics.reward == pytest.approx(sum(t.reward for t in valid) / 5)
    assert metrics.completion_tokens == sum(t.steps[0].turn.usage.completion_tokens for t in valid)


class BreaksLate(tiny.LetterEnv):
    """The sandbox fails in the second turn of every episode."""

    def apply(self, action: str) -> ActionResult:
        if self.turns_left == 0:
            raise SandboxError("gone")
        return super().apply(action)


def test_tokens_of_void_episodes_are_not_counted(make: Make, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_steps=1, groups_per_step=1, num_generations=2)
    # Both sandboxes are created, but the first one cannot be created again, in two tries.
    trainer = make(tmp_path / "run", config, broken=frozenset({2, 3}), env=BreaksLate)
    (metrics,) = train(trainer)
    void, failed = episodes(tmp_path / "run")
    assert (void.outcome, failed.outcome) == (Outcome.VOID, Outcome.FAILED)
    assert metrics.void == 0.5
    assert metrics.completion_tokens == sum(step.turn.usage.completion_tokens for step in failed.steps)


def test_a_step_of_voids_ends_training_and_is_taken_when_the_run_resumes(make: Make, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_steps=2)
    whole = train(make(tmp_path / "whole", config))
    each_step = config.groups_per_step * config.num_generations
    stopped = make(tmp_path / "run", config, broken=frozenset(range(each_step, 9 * each_step)))
    with pytest.raises(SandboxError, match=rf"step 2: {each_step} of {each_step} episodes are void, such as"):
        train(stopped)
    resumed = make(tmp_path / "run", config)
    assert resumed.resume()
    assert resumed.step == 1
    assert without_times(train(resumed)) == without_times(whole[1:])
    assert adapter(tmp_path / "run") == adapter(tmp_path / "whole")


class DifferentPrompts(tiny.LetterEnv):
    """Breaks the contract: the first observation differs between episodes of one visit."""

    shown = 0

    def setup(self, task: Task) -> str:
        DifferentPrompts.shown += 1
        return f"{super().setup(task)} It is {DifferentPrompts.shown} o'clock."


def test_one_visit_with_different_prompts_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"environment letter began one visit of task \w with different"):
        train(make(tmp_path / "run", env=DifferentPrompts))


@pytest.mark.parametrize(
    ("guard", "reason"),
    [
        ({"min_entropy": 100.0}, "step 1: the policy has collapsed, with an entropy of .*min_entropy is 100"),
        ({"max_kl": 1e-9}, "step [23]: the policy is .* nats per token away from its base .*max_kl is 1e-09"),
    ],
)
def test_a_collapse_ends_the_run_permanently(
    make: Make, tmp_path: Path, guard: dict[str, float], reason: str
) -> None:
    config = dataclasses.replace(CONFIG, save_steps=100, **guard)  # pyright: ignore[reportArgumentType]
    trainer = make(tmp_path / "run", config)
    seen = train(trainer)
    assert re.match(reason, trainer.alarm)
    assert len(seen) == trainer.step < config.max_steps
    second = make(tmp_path / "run", config)
    assert second.resume()
    assert (second.step, second.alarm) == (trainer.step, trainer.alarm)
    assert train(second) == []


class Raises(tiny.LetterEnv):
    """Its check raises, always or in the task ``a`` only."""

    always: ClassVar[bool] = True

    @check()
    def says_it(self) -> bool:
        if self.always or self.task.metadata["letter"] == "a":
            raise ZeroDivisionError("bug")
        return super().says_it()


class RaisesOnce(Raises):
    always = False


def test_a_bug_in_the_environment_fails_its_episodes_and_ends_the_run_only_if_nearly_all_raise(
    make: Make, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, groups_per_step=7, max_steps=1)
    trainer = make(tmp_path / "some", config, env=RaisesOnce)
    [metrics] = train(trainer)
    assert 0 < metrics.raised < 0.9
    assert trainer.alarm == ""
    failed = [episode for episode in episodes(tmp_path / "some") if "trace" in episode.info]
    assert len(failed) == round(metrics.raised * 7 * config.num_generations)
    assert {episode.reward for episode in failed} == {0.0}
    trainer = make(tmp_path / "all", config, env=Raises)
    [metrics] = train(trainer)
    assert metrics.raised == 1
    assert re.match(
        r"step 1: the environment raised an exception in 100% of the episodes; fix", trainer.alarm
    )


class AlwaysPays(tiny.LetterEnv):
    """Rewards every answer."""

    @check()
    def says_it(self) -> bool:
        return True


class AlwaysHacked(AlwaysPays):
    """Rewards every answer, although none passes the held-out check."""

    @check(held_out=True)
    def is_right(self) -> bool:
        return False


class Honest(AlwaysPays):
    @check(held_out=True)
    def is_right(self) -> bool:
        return True


def test_solved_tasks_that_fail_held_out_checks_end_the_run(make: Make, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, alarm_steps=2)
    trainer = make(tmp_path / "gamed", config, env=AlwaysHacked)
    seen = train(trainer)
    assert [(metrics.asked, metrics.hacked) for metrics in seen] == [(0, 0.0), (3, 1.0)]
    assert re.match(
        r"step 2: 100% of 3 solved tasks fail a held-out check \(max_hacked is 0\.2\)", trainer.alarm
    )
    assert episodes(tmp_path / "gamed")[-1].info["held_out"] == {"is_right": 0.0}
    for env in (Honest, AlwaysPays):
        trainer = make(tmp_path / env.__name__, config, env=env)
        assert len(train(trainer)) == config.max_steps
        assert trainer.alarm == ""


class OneTaskHacked(AlwaysPays):
    @check(held_out=True)
    def is_right(self) -> bool:
        return self.task.metadata["letter"] != "a"


@pytest.mark.parametrize(("env", "groups", "hacked"), [(AlwaysHacked, 1, 1.0), (OneTaskHacked, 7, 1 / 7)])
def test_one_rejected_task_raises_no_alarm(
    make: Make, tmp_path: Path, env: type[tiny.LetterEnv], groups: int, hacked: float
) -> None:
    """The alarm counts tasks and not episodes, and a share of few tasks is not significant."""
    config = dataclasses.replace(
        CONFIG, alarm_steps=1, groups_per_step=groups, num_generations=16, max_steps=1, max_hacked=0.1
    )
    trainer = make(tmp_path / "run", config, env=env)
    [metrics] = train(trainer)
    assert (metrics.asked, metrics.hacked, trainer.alarm) == (groups, hacked, "")


@pytest.mark.parametrize(
    ("hacked", "asked", "ends"), [(2, 7, False), (5, 7, True), (2, 2, True), (0, 9, False)]
)
def test_an_alarm_needs_a_clear_share_of_rejected_tasks(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hacked: int, asked: int, ends: bool
) -> None:
    def rejected(self: StepRollouts) -> list[bool]:
        return [number < hacked for number in range(asked)]

    monkeypatch.setattr(StepRollouts, "rejected", rejected)
    trainer = make(tmp_path / "run", dataclasses.replace(CONFIG, max_steps=1))
    train(trainer)
    assert bool(trainer.alarm) == ends


def test_the_kl_penalty_gives_gradients_even_without_rewards(make: Make, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_steps=3)
    assert [metrics.kl for metrics in train(make(tmp_path / "free", config))] == [0.0, 0.0, 0.0]
    first, _, third = train(make(tmp_path / "near", dataclasses.replace(config, beta=9.0)))
    assert first.kl == pytest.approx(0, abs=1e-9)  # a new adapter does not change the model
    assert third.kl > 0
    tasks = [dataclasses.replace(task, metadata={"letter": "\0"}) for task in TASKS]  # which is never sampled
    penalized = make(tmp_path / "tied", dataclasses.replace(config, beta=9.0), policy=None, tasks=tasks)
    with torch.no_grad():
        for parameter in penalized._policy.trainable():  # pyright: ignore[reportPrivateUsage]
            parameter.add_(0.05)
    first, *_ = train(penalized)
    assert (first.mixed, first.reward) == (0.0, 0.0)
    assert first.grad_norm > 0


def test_measuring_kl_does_not_change_training(make: Make, tmp_path: Path) -> None:
    # Every other letter is never sampled, so that some steps have no mixed group.
    tasks = [
        dataclasses.replace(task, metadata={"letter": "\0" if number % 2 else task.id})
        for number, task in enumerate(TASKS)
    ]
    config = dataclasses.replace(CONFIG, groups_per_step=1, max_steps=6)
    alone = train(make(tmp_path / "alone", config, tasks=tasks))
    measured = train(make(tmp_path / "watched", dataclasses.replace(config, max_kl=1e9), tasks=tasks))
    assert adapter(tmp_path / "watched") == adapter(tmp_path / "alone")
    moved = next(one.step for one in measured if one.grad_norm)
    still = [one for one in measured if one.step > moved and not one.mixed]
    assert still
    assert all(one.kl > 0 == one.grad_norm for one in still)
    assert {one.kl for one in alone} == {0.0}


def test_a_gradient_that_is_not_finite_ends_the_run(make: Make, tmp_path: Path) -> None:
    trainer = make(tmp_path / "run")
    train(trainer, until=1)
    policy = trainer._policy  # pyright: ignore[reportPrivateUsage]
    for parameter in policy.trainable():
        parameter.register_hook(lambda grad: grad * float("nan"))
    before = tiny.weights(policy)
    assert train(trainer) == []
    assert trainer.is_done()
    assert tiny.equal(before, tiny.weights(policy))
    assert all(torch.isfinite(weight).all() for weight in before)
    again = make(tmp_path / "run")
    assert again.resume()
    assert again.is_done()
    assert again.alarm == "step 2: the gradient is not finite; lower learning_rate"


def test_a_stop_between_the_updates_of_a_step_undoes_them(make: Make, tmp_path: Path) -> None:
    trainer = make(tmp_path / "run", dataclasses.replace(CONFIG, num_iterations=2, save_steps=9))
    train(trainer, until=1)
    before, update = tiny.weights(trainer.collector.policy), trainer.update

    def stopping(gradient: Gradient) -> StepMetrics:
        trainer.collector.rollouts.should_stop = lambda: True
        return update(gradient)

    trainer.update = stopping  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        train(trainer)
    assert trainer.step == 1
    assert tiny.equal(before, tiny.weights(trainer.collector.policy))


def test_weights_that_an_update_left_half_changed_are_not_saved(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, save_steps=2, max_steps=4)
    straight = train(make(tmp_path / "straight", config))
    step_of, trainer = torch.optim.AdamW.step, make(tmp_path / "run", config)

    def short_of_memory(optimizer: torch.optim.AdamW) -> None:
        step_of(optimizer)
        if trainer.step == 3:
            raise RuntimeError("not enough memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", short_of_memory)
        with pytest.raises(RuntimeError, match="not enough memory"):
            train(trainer)
    again = make(tmp_path / "run", config)
    assert again.resume()
    assert again.step == 2
    assert without_times(train(again)) == without_times(straight)[2:]
    assert adapter(tmp_path / "run") == adapter(tmp_path / "straight")


@pytest.mark.parametrize("error", [MemoryError, OSError, ValueError])
def test_the_last_finished_step_is_saved_whatever_ends_training(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    trainer = make(tmp_path / "run", dataclasses.replace(CONFIG, save_steps=5))
    collect = RolloutCollector.collect

    def failing(collector: RolloutCollector, step: int) -> StepRollouts:
        if step == 2:
            raise error("no more")
        return collect(collector, step)

    monkeypatch.setattr(RolloutCollector, "collect", failing)
    with pytest.raises(error, match="no more"):
        train(trainer)
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [2]


def test_later_updates_on_a_batch_are_clipped(make: Make, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_steps=1, learning_rate=0.1, warmup_steps=0)
    (once,) = train(make(tmp_path / "once", config))
    (twice,) = train(make(tmp_path / "twice", dataclasses.replace(config, num_iterations=2)))
    assert once.clipped == 0 < twice.clipped
    assert (twice.loss, twice.drift) == (once.loss, once.drift)
    assert adapter(tmp_path / "once") != adapter(tmp_path / "twice")


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("polls", [3, 17, 40, 75])
def test_a_stop_within_a_step_discards_it_and_resumes_to_the_same_bits(
    make: Make, tmp_path: Path, polls: int, iterations: int
) -> None:
    config = dataclasses.replace(CONFIG, num_iterations=iterations)
    straight = train(make(tmp_path / "straight", config))
    stopped = make(tmp_path / "stopped", config)
    stopped.collector.rollouts.should_stop = stop_after(polls)
    with pytest.raises(Stopped):
        train(stopped)
    again = make(tmp_path / "stopped", config)
    again.resume()
    assert without_times(train(again)) == without_times(straight)[stopped.step :]
    assert adapter(tmp_path / "stopped") == adapter(tmp_path / "straight")
