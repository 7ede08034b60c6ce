"""The environment base: Gymnasium's contract, the turn budget, and failures."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from guess_env import TASKS, Backend, GuessEnv, NarrowingEnv
from gymnasium.utils.env_checker import check_env

from envkit import (
    ActionResult,
    ContractError,
    Env,
    Grade,
    SandboxError,
    Task,
    TaskFileError,
    UsageError,
    check,
    tool,
)
from envkit.types import ResetInfo, StepInfo, total_reward


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def env(backend: Backend) -> Iterator[GuessEnv]:
    made = GuessEnv(sandbox=backend, max_turns=4)
    yield made
    made.close()


def test_gymnasium_accepts_the_environment(env: GuessEnv) -> None:
    check_env(env, skip_render_check=True)  # the render check needs a registered id


def test_a_check_of_each_turn_pays_its_changes(backend: Backend) -> None:
    env = NarrowingEnv(sandbox=backend, max_turns=4)
    env.reset(seed=0, options={"task": "below-10"})
    number = env.number
    steps = [env.step(str(guess)) for guess in (number + 1, number + 5, number)]
    part = 0.5 * (1 - (number + 1) / 10)
    assert [step[1] for step in steps] == pytest.approx([part, -2 / 10 * 0.5 * 2, 1 - part + 0.2])
    assert steps[0][4] == {"task": "below-10", "turn": 1, "rewards": {"narrowed": part}}
    assert steps[2][4]["rewards"] == pytest.approx({"right": 0.5, "narrowed": 0.5 - part + 0.2})
    assert sum(step[1] for step in steps) == pytest.approx(1)
    env.reset(seed=0, options={"task": "below-10"})
    assert env.step(str(number + 1))[1] == pytest.approx(part), "an earlier episode's pay counts"
    env.close()


class Costly(GuessEnv):
    """Every turn costs 0.1, every guess earns 0.3, and speed earns 0.2 but is not required."""

    turn_cost = 0.1
    reward_range = (-0.25, 1.5)

    def apply(self, action: str) -> ActionResult:
        found = super().apply(action)
        return ActionResult(found.observation, found.done, 0.3 if action.isdecimal() else 0.0)

    @check(weight=0.25, required=False)
    def fast(self) -> bool:
        return self.turns_left == self.max_turns - 1


class Honest(Costly):
    """The same for those who never say 0."""

    def setup(self, task: Task) -> str:
        self.said_0 = False
        return super().setup(task)

    def apply(self, action: str) -> ActionResult:
        self.said_0 |= action == "0"
        return super().apply(action)

    @check(weight=0, gate=True)
    def honest(self) -> bool:
        return not self.said_0


def played(env: GuessEnv, *actions: Callable[[int], object]) -> list[tuple[Any, ...]]:
    """The steps of an episode; each action is made from the number that is right."""
    env.reset(seed=0, options={"task": "below-10"})
    return [env.step(str(action(env.number))) for action in actions]


def test_turns_cost_actions_earn_and_solved_does_not_depend_on_it(backend: Backend) -> None:
    first, last = played(Costly(sandbox=backend), lambda right: right + 1, lambda right: right)
    assert (first[1], first[4]["rewards"]) == (0.2, {"actions": 0.3, "turn_cost": -0.1})
    assert last[4]["rewards"] == pytest.approx({"right": 0.8, "fast": 0, "actions": 0.3, "turn_cost": -0.1})
    assert (last[1], last[4]["solved"], last[4]["verdict"]) == (1.0, True, "PASS")


def test_an_episode_earns_no_more_and_no_less_than_the_range(backend: Backend) -> None:
    for action, total in (("no number", -0.25), ("99", 1.5)):
        steps = played(Costly(sandbox=backend, max_turns=12), *[lambda _, said=action: said] * 12)
        assert sum(step[1] for step in steps) == pytest.approx(total)
        assert steps[-1][1] == 0
        for step in steps:
            assert sum(step[4]["rewards"].values()) == pytest.approx(step[1])
    assert steps[-1][4]["rewards"]["limit"] < 0


def test_a_failed_gate_takes_back_what_actions_have_earned(backend: Backend) -> None:
    steps = played(Honest(sandbox=backend), lambda _: 0, lambda right: right)
    assert steps[-1][4]["rewards"]["actions"] == pytest.approx(-0.3)
    assert sum(step[1] for step in steps) == pytest.approx(-0.2)
    assert (steps[-1][4]["solved"], steps[-1][4]["scores"]["right"]) == (False, 1)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("reward_range", (0.1, 1.0), r"reward_range is \(0.1, 1.0\); expected a lowest sum of at most 0"),
        ("reward_range", (0.0, 0.5), "a highest of at least 1"),
        ("reward_range", (float("-inf"), 1.0), "reward_range is"),
        ("turn_cost", -0.1, "turn_cost is -0.1; expected 0 or a positive number"),
        ("turn_cost", float("nan"), "turn_cost is nan"),
    ],
)
def test_a_range_or_cost_that_cannot_be_is_refused(name: str, value: object, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        type("Wrong", (GuessEnv,), {name: value})()


@pytest.mark.parametrize("reward", [None, "0.5", float("nan"), float("-inf"), 1j])
def test_a_reward_that_is_no_number_is_refused(backend: Backend, reward: Any) -> None:
    class Lost(GuessEnv):
        def apply(self, action: str) -> ActionResult:
            return ActionResult("", reward=reward)

    said = re.escape(f"apply returned an ActionResult with reward {reward!r}; expected a finite number")
    with pytest.raises(ContractError, match=said):
        played(Lost(sandbox=backend), lambda _: "")


@pytest.mark.parametrize("observation", [None, b"text", 3])
def test_an_observation_that_is_no_text_is_refused(backend: Backend, observation: Any) -> None:
    class Lost(GuessEnv):
        def apply(self, action: str) -> ActionResult:
            return ActionResult(observation)

    said = re.escape(f"apply returned an ActionResult with observation {observation!r}; expected a str")
    with pytest.raises(ContractError, match=said):
        played(Lost(sandbox=backend), lambda _: "")


def test_a_reward_may_be_any_real_number(backend: Backend) -> None:
    class Scientific(GuessEnv):
        def apply(self, action: str) -> ActionResult:
            return ActionResult("", reward=np.float32(0.25))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    assert played(Scientific(sandbox=backend), lambda _: "")[0][1] == 0.25


def test_a_class_without_a_required_check_is_refused(backend: Backend) -> None:
    class Style(Env):
        id: ClassVar[str] = "style"

        def setup(self, task: Task) -> str:
            return ""

        def apply(self, action: str) -> ActionResult:
            return ActionResult("", done=True)

        @check(required=False)
        def short(self) -> float:
            return 0.0

        @check(held_out=True)
        def right(self) -> bool:
            return False

    with pytest.raises(ContractError, match="Style has no required check, so every episode would be solved"):
        Style(tasks=TASKS, sandbox=backend)

    class Gated(Style):
        @check(weight=0, required=True)
        def sane(self) -> bool:
            return True

    Gated(tasks=TASKS, sandbox=backend).close()


class Secretive(GuessEnv):
    secrets = ("ENVKIT_TEST_KEY",)

    def setup(self, task: Task) -> str:
        return f"{super().setup(task)} with {self.secret('ENVKIT_TEST_KEY')}"

    def apply(self, action: str) -> ActionResult:
        return ActionResult(action + self.secret("ENVKIT_TEST_KEY"), done=True)

    @check()
    def tells(self) -> Grade:
        return Grade(score=0, evidence=self.secret("ENVKIT_TEST_KEY"))


def test_secrets_stay_out_of_what_agents_see_and_reports_keep(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVKIT_TEST_KEY", "canary-123")
    env = Secretive(sandbox=backend, render_mode="ansi")
    seen, _ = env.reset(seed=0, options={"task": "below-10"})
    assert seen == "0..9 with [ENVKIT_TEST_KEY]"
    seen, _, _, _, info = env.step("Say: ")
    assert (seen, env.render()) == ("Say: [ENVKIT_TEST_KEY]",) * 2
    assert info["evidence"] == {"tells": "[ENVKIT_TEST_KEY]"}
    with pytest.raises(ContractError, match="Secretive reads secret 'OTHER'; add the name to its `secrets`"):
        env.secret("OTHER")


@pytest.mark.parametrize("parts", [3, 6, 7, 9, 11])
def test_rewards_of_turns_add_up_to_the_score(backend: Backend, parts: int) -> None:
    class Shares(GuessEnv):
        def apply(self, action: str) -> ActionResult:
            return ActionResult("")

        @check(each_turn=True)
        def right(self) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
            return (self.max_turns - self.turns_left) / parts

    env = Shares(sandbox=backend, max_turns=parts)
    env.reset(seed=0)
    rewards = [env.step("")[1] for _ in range(parts)]
    assert sum(rewards) == pytest.approx(1, abs=1e-14)
    assert total_reward(rewards) == 1


@pytest.mark.parametrize("name", ["secrets", "judges"])
def test_a_text_is_no_list_of_texts(name: str) -> None:
    with pytest.raises(ContractError, match=rf"Wrong\.{name} is 'KEY'; expected a list, such as \['KEY'\]"):
        type("Wrong", (GuessEnv,), {name: "KEY"})()


@pytest.mark.parametrize(
    ("value", "found"), [(None, "is not set"), ("", "is not set"), ("abc", "has 3 char")]
)
def test_a_secret_must_be_given(value: str | None, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("ENVKIT_TEST_KEY", raising=False)
    else:
        monkeypatch.setenv("ENVKIT_TEST_KEY", value)
    with pytest.raises(UsageError, match=f"ENVKIT_TEST_KEY {found}.*export ENVKIT_TEST_KEY=") as caught:
        Secretive()
    assert value is None or value == "" or value not in str(caught.value)


def test_an_instance_has_the_turns_of_its_class_or_its_own(backend: Backend) -> None:
    class Patient(GuessEnv):
        max_turns = 7

    assert [Patient(sandbox=backend, **given).max_turns for given in ({}, {"max_turns": 2})] == [7, 2]
    assert (Patient.max_turns, GuessEnv.max_turns) == (7, 3)


def test_vector_environments_work(backend: Backend) -> None:
    vector = gymnasium.vector.SyncVectorEnv([lambda: GuessEnv(sandbox=backend) for _ in range(2)])
    seen, _ = vector.reset(seed=3)
    assert all(text.startswith("0..") for text in seen)
    _, rewards, *_ = vector.step(("quit", "quit"))
    assert list(rewards) == [0, 0]
    vector.close()


def test_an_episode(env: GuessEnv, backend: Backend) -> None:
    seen, info = env.reset(seed=0, options={"task": "below-10"})
    assert (seen, info) == ("0..9", {"task": "below-10", "split": "train"})
    assert backend.open == {0}
    wrong = "9" if env.number != 9 else "0"
    _, reward, terminated, truncated, info = env.step(wrong)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info == {"task": "below-10", "turn": 1}
    seen, reward, terminated, truncated, info = env.step(str(env.number))
    assert (seen, reward, terminated, truncated) == ("Right.", 1.0, True, False)
    assert info == {
        "task": "below-10",
        "turn": 2,
        "rewards": {"right": 1.0},
        "scores": {"right": 1.0, "quick": 0.5},
        "solved": True,
        "verdict": "PASS",
        "evidence": {},
    }
    assert not backend.open


def test_the_keys_of_info_are_documented(env: GuessEnv) -> None:
    _, info = env.reset(seed=0)
    assert {*info} == {*ResetInfo.__annotations__}
    _, _, _, _, info = env.step("what?")
    assert {*info} == {"task", "turn"}
    _, _, _, _, info = env.step("quit")
    assert {*info} == {*StepInfo.__annotations__} - {"weaknesses", "held_out"}


def test_a_used_up_turn_budget_truncates_and_is_scored(env: GuessEnv, backend: Backend) -> None:
    env.reset(seed=0)
    steps = [env.step("what?") for _ in range(4)]
    assert [step[2:4] for step in steps] == [(False, False)] * 3 + [(False, True)]
    assert (steps[-1][1], steps[-1][4]["solved"]) == (0.0, False)
    assert not backend.open


def test_giving_up_terminates(env: GuessEnv) -> None:
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step("quit")
    assert (reward, terminated, truncated, info["verdict"]) == (0.0, True, False, "FAIL")


def test_ending_on_the_last_turn_terminates_and_does_not_truncate(env: GuessEnv) -> None:
    env.reset(seed=0)
    for _ in range(3):
        env.step("what?")
    assert env.step("quit")[2:4] == (True, False)


def test_the_seed_determines_task_and_hidden_inputs(env: GuessEnv) -> None:
    drawn = set()
    for seed in range(20):
        _, info = env.reset(seed=seed)
        number = env.visit_seed
        assert 0 <= number < 2**63
        assert env.reset(seed=seed)[1] == info
        assert env.visit_seed == number
        drawn.add((info["task"], number))
    assert {task for task, _ in drawn} == {task.id for task in TASKS}
    assert len(drawn) == 20


def test_episodes_differ_without_a_new_seed(env: GuessEnv) -> None:
    env.reset(seed=0)
    first = env.visit_seed
    env.reset()
    assert env.visit_seed != first


def test_an_unknown_task_is_refused_with_an_existing_one(env: GuessEnv) -> None:
    with pytest.raises(UsageError, match=r"no task 'below-11' among the 3 loaded, e\.g\. 'below-10'"):
        env.reset(options={"task": "below-11"})


def test_unknown_option_is_refused(env: GuessEnv) -> None:
    with pytest.raises(UsageError, match="unknown reset option 'tsk'; expected 'task'"):
        env.reset(options={"tsk": "below-10"})


def test_reset_does_not_change_the_callers_options(env: GuessEnv) -> None:
    options = {"task": "below-10"}
    env.reset(options=options)
    assert options == {"task": "below-10"}


def test_step_without_a_running_episode_is_refused(env: GuessEnv) -> None:
    with pytest.raises(ContractError, match="call reset"):
        env.step("1")
    with pytest.raises(ContractError, match="call reset"):
        _ = env.task
    env.reset(seed=0)
    env.step("quit")
    with pytest.raises(ContractError, match="call reset"):
        env.step("1")
    with pytest.raises(ContractError, match="call reset"):
        _ = env.sandbox


@pytest.mark.parametrize("action", ["x" * 16_385, "\ud800", 3, None])
def test_an_invalid_action_is_explained_and_costs_a_turn(env: GuessEnv, action: Any) -> None:
    env.reset(seed=0)
    seen, _, terminated, _, info = env.step(action)
    assert "not valid text of at most 16384 bytes" in seen
    assert (terminated, info["turn"]) == (False, 1)


def test_observations_are_clipped_to_the_observation_space(backend: Backend) -> None:
    class LongObservations(Env):
        id = "loud"

        def setup(self, task: Task) -> str:
            return "é" * 1000

        def apply(self, action: str) -> ActionResult:
            return ActionResult("\ud800" + action * 1000)

        @check()
        def right(self) -> bool:
            return True

    env = LongObservations(tasks=TASKS, sandbox=backend, max_observation_bytes=64, render_mode="ansi")
    seen, _ = env.reset(seed=0)
    assert seen in env.observation_space
    assert env.render() == seen
    seen, *_ = env.step("shout")
    assert seen in env.observation_space
    assert "[... cut ...]" in seen
    env.close()


def test_render_returns_none_without_a_render_mode(env: GuessEnv) -> None:
    env.reset(seed=0)
    assert env.render() is None


FAILING_CALLS: dict[str, Callable[[GuessEnv], object]] = {
    "setup": lambda env: env.reset(seed=0),
    "7": lambda env: env.step("7"),
    "check": lambda env: env.step("quit"),
}


@pytest.mark.parametrize("place", FAILING_CALLS)
def test_a_sandbox_failure_raises_and_gives_no_reward(env: GuessEnv, backend: Backend, place: str) -> None:
    env.reset(seed=0)
    env.faults.append(place)
    with pytest.raises(SandboxError, match=f"broken at {place}"):
        FAILING_CALLS[place](env)
    assert not backend.open, "the sandbox of a failed episode was not closed"
    with pytest.raises(ContractError, match="call reset"):
        env.step("1")
    env.reset(seed=0)
    assert env.step("quit")[1:3] == (0.0, True)


def test_no_episode_starts_without_a_sandbox() -> None:
    env = GuessEnv(sandbox=Backend(breaks=1))
    with pytest.raises(SandboxError, match="no sandbox"):
        env.reset(seed=0)
    with pytest.raises(ContractError, match="call reset"):
        env.step("1")
    env.reset(seed=0)
    env.close()


def test_a_sandbox_that_cannot_be_closed_is_not_kept(env: GuessEnv) -> None:
    env.reset(seed=0)
    sandbox = env.sandbox

    def fail() -> None:
        raise SandboxError("stuck")

    close, sandbox.close = sandbox.close, fail
    with pytest.raises(SandboxError, match="stuck"):
        env.close()
    env.reset(seed=0)
    assert env.sandbox is not sandbox
    close()


def test_reset_and_close_end_the_running_episode(env: GuessEnv, backend: Backend) -> None:
    env.reset(seed=0)
    env.reset(seed=1)
    assert backend.open == {1}
    env.close()
    env.close()
    assert not backend.open


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ()}, "no tasks"),
        ({"tasks": (TASKS[0], TASKS[0])}, f"several tasks have the id '{TASKS[0].id}'"),
        ({"max_turns": 0}, "max_turns is 0"),
        ({"render_mode": "human"}, "render_mode is 'human'"),
    ],
)
def test_invalid_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GuessEnv(**options)


def test_tasks_are_made_one_by_one(backend: Backend) -> None:
    class Dice(GuessEnv):
        id = "dice"
        task_counts: ClassVar = {"train": 8, "heldout": 2, "test": 3}

        @classmethod
        def make_task(cls, split: str, number: int, draw: random.Random) -> Task:
            return Task(f"{split}/{number}", split, f"{draw.random()}", {})

    found = {split: Dice.tasks_of(split, backend) for split in ("train", "heldout", "test", "starter")}
    assert {split: len(tasks) for split, tasks in found.items()} == {**Dice.task_counts, "starter": 6}
    assert found["starter"] == found["train"][:6]
    assert Dice.tasks_of("train", backend) == found["train"]
    assert len({task.prompt for split in Dice.task_counts for task in found[split]}) == 13
    for kind, split in ((Dice, "dev"), (GuessEnv, "train"), (GuessEnv, "dev")):
        with pytest.raises(UsageError, match=f"{kind.id} has no '{split}' tasks of its own"):
            kind.tasks_of(split, backend)


def test_an_environment_without_weighted_check_or_id_is_refused(backend: Backend) -> None:
    class Nameless(Env):
        def setup(self, task: Task) -> str:
            return ""

        def apply(self, action: str) -> ActionResult:
            return ActionResult("")

        @check()
        def right(self) -> bool:
            return True

    class Unrewarded(Nameless):
        id = "unrewarded"

        @check(weight=0)
        def right(self) -> bool:
            return True

    with pytest.raises(ContractError, match="Nameless has no id"):
        Nameless(tasks=TASKS, sandbox=backend)
    with pytest.raises(ContractError, match="Unrewarded has no check with weight"):
        Unrewarded(tasks=TASKS, sandbox=backend)


@pytest.mark.parametrize("mark", [tool, check()])
@pytest.mark.parametrize("name", ["close", "help", "apply", "tasks", "render"])
def test_a_tool_or_check_named_like_a_base_method_is_refused(mark: Any, name: str) -> None:
    def method(self: Any) -> str:
        return ""

    with pytest.raises(ContractError, match=f"{name} of Made would replace Env.{name}; give it another"):
        type("Made", (GuessEnv,), {name: mark(method)})


@pytest.mark.parametrize("name", ["reset", "step", "close"])
def test_overriding_reset_step_or_close_is_refused(name: str) -> None:
    mixin = type("Mixin", (), {name: lambda self: None})
    for bases, members in (((GuessEnv,), vars(mixin)), ((mixin, GuessEnv), {})):
        with pytest.raises(ContractError, match=f"Made replaces Env.{name}, which belongs to Env"):
            type("Made", bases, {name: members[name]} if members else {})


def test_every_class_validates_its_tasks_once(backend: Backend) -> None:
    seen: list[str] = []

    class RecordsValidation(GuessEnv):
        @classmethod
        def validate_task(cls, task: Task) -> None:
            seen.append(task.id)

    GuessEnv(sandbox=backend).close()
    for _ in range(2):
        RecordsValidation(sandbox=backend).close()
    assert seen == [task.id for task in TASKS]


def test_a_task_that_fails_validation_is_refused(backend: Backend) -> None:
    class RefusesLastTask(GuessEnv):
        @classmethod
        def validate_task(cls, task: Task) -> None:
            if task.id == TASKS[-1].id:
                raise TaskFileError(f"task {task.id}: too large")

    with pytest.raises(TaskFileError, match="too large"):
        RefusesLastTask(sandbox=backend)
    assert not backend.open
