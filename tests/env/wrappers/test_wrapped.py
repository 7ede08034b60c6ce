"""Gymnasium environments as envkit environments: texts, actions, rewards and the audit."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from guess_env import Backend
from lakes import FrozenLake, NumbersEnv, SumsEnv

from envkit import ContractError, Env, Grade, GymnasiumEnv, UsageError, wrap
from envkit.audit.certificate import certify
from envkit.audit.suite import EnvSuite
from envkit.runtime.display import Silent
from envkit.sandbox.choice import sandbox_backend


def made(kind: type[Env], **options: Any) -> Env:
    tasks = kind.make_tasks("starter", sandbox=Backend(), display=Silent())
    return kind(tasks=tasks, sandbox=Backend(), **options)


@pytest.fixture
def lake() -> Iterator[Env]:
    env = made(FrozenLake)
    yield env
    env.close()


class TestSums(EnvSuite):
    kind = SumsEnv


def test_what_is_rendered_is_the_observation_and_names_are_actions(lake: Env) -> None:
    seen, info = lake.reset(seed=0)
    assert seen == f"{FrozenLake.prompt}\n\n\n[S]FFF\nFHFH\nFFFH\nHFFG\n"
    assert info["split"] == "train"
    assert lake.step(" down ")[0] == "  (Down)\nSFFF\n[F]HFH\nFFFH\nHFFG\n"
    assert lake.step("2")[0].endswith("\nSFFF\nF[H]FH\nFFFH\nHFFG\n")


@pytest.mark.parametrize("action", ["jump", "9", "[0]", "", "down\nright", "(" * 9000])
def test_other_actions_are_explained_and_change_nothing(lake: Env, action: str) -> None:
    before, _ = lake.reset(seed=0)
    assert lake.step(action)[0] == "That is no action. Say one of: left, down, right, up"
    assert "[F]HFH" in lake.step("down")[0], before


def test_an_audit_says_that_a_lake_with_one_map_has_no_held_out_tasks(lake: Env) -> None:
    found = {finding.check: finding for finding in certify(FrozenLake, sandbox_backend(), Silent()).findings}
    failed = [name for name, finding in found.items() if finding.ok is False]
    assert failed == ["splits share no task"]
    assert "200 of 200 held-out tasks are train tasks" in found[failed[0]].detail


def test_the_return_is_scaled_paid_turn_by_turn_and_compared_with_the_goal() -> None:
    env = made(SumsEnv, max_turns=5)
    for wrong, total, solved in ((0, 1.0, True), (1, 0.5, True), (2, 0.0, False)):
        env.reset(seed=1)
        right = env.oracle(env.task)[0]
        steps = [env.step(action) for action in [*["no"] * wrong, right]]
        assert sum(step[1] for step in steps) == total
        assert (steps[-1][2], steps[-1][4]["solved"]) == (True, solved)
    assert steps[-1][4]["evidence"] == {"reached": "the return is 0, expected 1 or more"}
    env.close()


def test_a_task_can_be_solved_only_by_a_required_check() -> None:
    with pytest.raises(ContractError, match="reached replaces a check and is not marked"):

        class Lenient(SumsEnv):
            def reached(self) -> Grade:
                return Grade(score=0.0)

    class Aimless(SumsEnv):
        reached = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    with pytest.raises(ContractError, match="Aimless has no required check"):
        made(Aimless)


def test_a_task_is_a_seed_and_no_split_shares_one() -> None:
    splits = {
        split: {
            str(task.metadata["seed"])
            for task in SumsEnv.make_tasks(split, sandbox=Backend(), display=Silent())
        }
        for split in ("train", "heldout", "test")
    }
    assert sum(map(len, splits.values())) == len(set[str]().union(*splits.values())) == 1400
    with pytest.raises(UsageError, match="has no 'dev' tasks"):
        SumsEnv.make_tasks("dev", sandbox=Backend(), display=Silent())


def test_an_environment_that_cannot_be_made_says_why() -> None:
    def fail() -> Any:
        raise RuntimeError("the real cause")

    env = made(wrap(fail, id="none", max_turns=1))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the real cause"):
            env.reset(seed=0)
    env.close()


def test_numbers_are_literals_of_the_action_space() -> None:
    env = made(NumbersEnv)
    assert env.reset(seed=0)[0].startswith("It is 0.")
    assert env.step("1")[0] == "That is no action. Say one of: 2 to 4"
    _, reward, terminated, _, info = env.step("4")
    assert (reward, terminated, info["solved"]) == (0.5, True, False)
    env.close()


def test_an_observation_that_is_no_text_must_be_shown_somehow() -> None:
    class Silent_(NumbersEnv):
        show = GymnasiumEnv.show

    with pytest.raises(
        ContractError, match=r"render\(\) gives no text; make it with render_mode='ansi', or write"
    ):
        made(Silent_).reset(seed=0)


def test_a_class_made_in_one_call_can_be_pickled_and_lives_where_it_was_made() -> None:
    assert pickle.loads(pickle.dumps(FrozenLake)) is FrozenLake
    assert (FrozenLake.__name__, FrozenLake.__module__, FrozenLake.isolation) == (
        "FrozenLake",
        "lakes",
        "external",
    )
    here = wrap(SumsEnv.make, id="sums_here", max_turns=3, solved_at=1.0)
    assert (here.__name__, here.__module__) == ("SumsHere", __name__)
    with pytest.raises(ContractError, match="SumsHere has no oracle"):
        here.oracle(here.make_tasks("starter", sandbox=Backend(), display=Silent())[0])


def test_a_class_says_how_many_turns_an_episode_has() -> None:
    with pytest.raises(ContractError, match=r"Hasty sets no max_turns; .* make\(\)\.spec\.max_episode_steps"):
        wrap(SumsEnv.make, id="hasty")

    class Family(GymnasiumEnv):
        """A base for others, which makes nothing itself."""

    class Member(Family):
        id = "member"
        make = SumsEnv.make
        max_turns = 7

    assert made(Member).max_turns == 7


@pytest.mark.parametrize("found", [(1.0, 1.0), (1.0, 0.0), (0.0, float("nan")), (0.0, float("inf"))])
def test_a_range_of_returns_must_have_a_width(found: tuple[float, float]) -> None:
    with pytest.raises(
        ContractError, match=r"Flat\.return_range is \(.*; expected a lower return and a higher"
    ):
        wrap(SumsEnv.make, id="flat", max_turns=3, return_range=found)
