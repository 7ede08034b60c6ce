"""The curriculum prefers mixed groups, learns where they are, and resumes exactly."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from envkit.errors import TrainingError
from envkit.runtime.store import Journal
from envkit.training.config import TrainConfig
from envkit.training.curriculum import Curriculum
from envkit.training.rollouts import RolloutCollector
from envkit.types import Outcome, StepRecord, Task, Trajectory, Turn


def tasks(count: int, operators: str = "ab") -> list[Task]:
    return [Task(f"t{i}", "train", "", {}, {"operator": operators[i % len(operators)]}) for i in range(count)]


def run(curriculum: Curriculum, steps: range, solved_of: dict[str, int], count: int = 4) -> list[list[str]]:
    """Record results for all picks; ``solved_of`` gives each task's solved episodes out of 8."""
    picked: list[list[str]] = []
    for step in steps:
        picked.append(curriculum.pick(step, count))
        for task in picked[-1]:
            curriculum.record(step, task, solved_of[task], 8)
    return picked


SOLVED = {f"t{i}": (0, 4, 8, 2, 0, 8)[i % 6] for i in range(60)}


def test_picks_depend_on_the_seed() -> None:
    first, again, other = (run(Curriculum(tasks(60), seed), range(10), SOLVED) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_picks_are_distinct_and_at_most_all_tasks() -> None:
    curriculum = Curriculum(tasks(5), 0)
    for step in range(20):
        assert len(set(curriculum.pick(step, 3))) == 3
        assert sorted(curriculum.pick(step, 9)) == ["t0", "t1", "t2", "t3", "t4"]


def test_environments_are_picked_in_equal_shares_regardless_of_difficulty() -> None:
    first, second = tasks(20, "a"), [replace(task, id=f"u{i}") for i, task in enumerate(tasks(3, "b"))]
    some = [
        replace(task, metadata={**task.metadata, "environment": name})
        for name, own in (("one", first), ("other", second))
        for task in own
    ]
    curriculum = Curriculum(some, 0)
    for task in some[20:]:
        curriculum.record(-10, task.id, 0, 100)
    picked = [curriculum.pick(step, 3) for step in range(4)]
    assert [sum(task.startswith("u") for task in each) for each in picked] == [1, 2, 1, 2]
    assert sorted(each[0] for each in curriculum.pick(0, 12)) == ["t"] * 9 + ["u"] * 3, (
        "the other environment has only 3 tasks"
    )


def of_environments(*sizes: int) -> list[Task]:
    """Tasks of the environments "e0", "e1", ..., whose ids begin with their names."""
    return [
        replace(task, id=f"e{i} {task.id}", metadata={**task.metadata, "environment": f"e{i}"})
        for i, size in enumerate(sizes)
        for task in tasks(size)
    ]


def visits_of(curriculum: Curriculum, steps: int, count: int, solved: dict[str, int]) -> list[Counter[str]]:
    """Visits of each environment in each step; ``solved`` gives its solved episodes out of 8."""
    found: list[Counter[str]] = []
    for step in range(steps):
        picked = curriculum.pick(step, count)
        for task in picked:
            curriculum.record(step, task, solved[task[:2]], 8)
        found.append(Counter(task[:2] for task in picked))
    return found


def test_environments_are_visited_by_their_weights_in_every_step_and_exactly_over_many() -> None:
    curriculum = Curriculum(of_environments(60, 60, 60), 0, weights={"e0": 3, "e2": 0.5})
    assert curriculum.shares() == pytest.approx([3 / 4.5, 1 / 4.5, 0.5 / 4.5])
    steps = visits_of(curriculum, 90, 5, {"e0": 0, "e1": 8, "e2": 4})
    for visits in steps:
        assert abs(visits["e0"] - 5 * 3 / 4.5) < 1
        assert abs(visits["e1"] - 5 / 4.5) < 1
    total = sum(steps, Counter[str]())
    assert [total[name] / 450 for name in ("e0", "e1", "e2")] == pytest.approx(curriculum.shares(), abs=0.01)


def test_an_environment_that_is_not_solved_gets_more_visits_up_to_the_given_ratio() -> None:
    solved = {"e0": 8, "e1": 0}
    curriculum = Curriculum(of_environments(200, 200), 0, worst_task_weight=4)
    assert curriculum.shares() == pytest.approx([0.5, 0.5])  # nothing is known yet
    steps = visits_of(curriculum, 60, 10, solved)
    assert curriculum.shares()[1] == pytest.approx(0.8, abs=0.01)
    assert sum(steps[-20:], Counter[str]())["e1"] == pytest.approx(160, abs=4)
    solved["e1"] = 8  # learned by now
    visits_of(curriculum, 60, 10, solved)
    assert curriculum.shares() == pytest.approx([0.5, 0.5], abs=0.01)


def test_shares_resume_and_older_runs_resume_with_equal_ones() -> None:
    some = of_environments(20, 20)
    first, again, old = (Curriculum(some, 0, worst_task_weight=9) for _ in range(3))
    visits_of(first, 10, 4, {"e0": 8, "e1": 2})
    state = json.loads(json.dumps(first.state()))
    again.restore(state)
    assert [*again.shares()] == [*first.shares()]
    old.restore({name: value for name, value in state.items() if not name.startswith("env_")})
    assert [*old.shares()] == [0.5, 0.5]


def test_a_weight_of_an_environment_without_tasks_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"mix names other, and there are no tasks of it; found e0, e1"):
        Curriculum(of_environments(3, 3), 0, weights={"e0": 2, "other": 1})


def test_all_tasks_of_a_single_source_can_be_picked_at_once() -> None:
    assert len(set(Curriculum(of_one_source(tasks(100)), 0).pick(0, 100))) == 100


def test_a_resting_source_is_visited_before_one_that_this_step_has_visited() -> None:
    some = [
        replace(task, id=f"{task.id}-{twin}", metadata={**task.metadata, "source": task.id})
        for task in tasks(25)
        for twin in "ab"
    ]
    curriculum = Curriculum(some, 0)
    for step in range(20):
        picked = curriculum.pick(step, 20)
        assert len({task.partition("-")[0] for task in picked}) == 20
        for task in picked:
            curriculum.record(step, task, 4, 8)


def test_an_environment_without_tasks_left_takes_none_from_the_other_twice() -> None:
    curriculum = Curriculum(of_environments(2, 40), 0)
    for step in range(20):
        assert len(set(curriculum.pick(step, 30))) == 30


def test_hopeless_tasks_come_last_however_many_are_picked_of_a_source() -> None:
    some = of_one_source(tasks(200, "ab"))
    curriculum = Curriculum(some, 0)
    for number in range(0, 200, 2):  # kind a is hopeless
        curriculum.record(-100, f"t{number}", 0, 10**6)
        curriculum.record(-100, f"t{number + 1}", 4, 8)
    picked = [int(task[1:]) % 2 for task in curriculum.pick(0, 90)]
    assert sum(picked) > 85


def of_one_source(some: list[Task]) -> list[Task]:
    return [replace(task, metadata={**task.metadata, "source": "f"}) for task in some]


def test_tasks_with_mixed_groups_are_visited_more_often() -> None:
    solved = {f"t{i}": (0, 4, 8)[i % 3] for i in range(30)}
    curriculum = Curriculum(of_one_source(tasks(30, "a")), 0, cooldown=1)
    visits = Counter(task for step in run(curriculum, range(120), solved) for task in step)
    by_kind = [sum(n for task, n in visits.items() if solved[task] == kind) for kind in (0, 4, 8)]
    assert by_kind[1] > 1.5 * by_kind[0]
    assert by_kind[1] > 1.5 * by_kind[2]


#: What eight episodes earn: level 1 is solved half of the time, the others never, and 2 and 3 in part.
BY_LEVEL = {1: [0.0, 1.0] * 4, 2: [0.0, 0.5, 0.25, 0.5] * 2, 3: [0.5] * 8, 4: [0.0] * 8}


def test_tasks_that_are_never_solved_are_picked_if_their_groups_are_mixed_by_partial_credit(
    tmp_path: Path,
) -> None:
    levels = {f"t{i}": i % 4 + 1 for i in range(400)}
    some = [replace(task, metadata={"operator": f"level {levels[task.id]}"}) for task in tasks(400)]
    visits = Counter[int]()
    config = TrainConfig(groups_per_step=8, num_generations=8)
    no_policy: Any = None
    with Journal(tmp_path / "episodes.jsonl") as journal:
        collector = RolloutCollector(no_policy, some, no_policy, config, journal)
        for step in range(25):
            keys = collector.episode_keys(step)
            episodes: list[Trajectory] = []
            for key in keys:
                reward = BY_LEVEL[levels[key.task]][key.row]
                outcome = Outcome.SOLVED if reward == 1 else Outcome.FAILED
                steps = (StepRecord("", Turn(""), reward),)
                episodes.append(Trajectory(key, "e", "policy", steps, outcome))
            collector.record(episodes, 1.0)
            visits += Counter(levels[key.task] for key in keys if key.row == 0)
    assert visits[2] > 0.7 * visits[1]
    assert max(visits[3], visits[4]) < 0.5 * visits[1], "no group of these levels is mixed"


def test_unseen_sources_are_picked_before_seen_ones() -> None:
    some = tasks(40)
    sources = {task.id: f"f{i % 10}" for i, task in enumerate(some)}
    curriculum = Curriculum(
        [replace(task, metadata={**task.metadata, "source": sources[task.id]}) for task in some], 0
    )
    solved = {task.id: 2 for task in some}
    first = [sources[task] for step in run(curriculum, range(3), solved, count=3) for task in step]
    assert len(set(first)) == 9
    later = Counter(sources[task] for step in run(curriculum, range(3, 63), solved, count=3) for task in step)
    assert max(later.values()) <= 1.5 * min(later.values())


def test_results_change_the_rates_of_untried_tasks_of_the_same_kind() -> None:
    curriculum = Curriculum(tasks(20), 0)
    before = curriculum.rates()
    assert before == pytest.approx(np.full(20, 1 / 3))
    for step in range(6):
        curriculum.record(step, f"t{2 * step}", 8, 8)  # operator a
        curriculum.record(step, f"t{2 * step + 1}", 0, 8)  # operator b
    after = curriculum.rates()
    assert after[18] > before[18] + 0.2
    assert after[19] < before[19] - 0.1
    assert ((after > 0) & (after < 1)).all()


def of_lengths(count: int = 300) -> tuple[list[Task], dict[str, float]]:
    """Tasks of many lengths and two kinds, and solve rates that follow from them."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(6, 0.6, count))
    some = [replace(task, prompt="x" * int(n)) for task, n in zip(tasks(count), lengths, strict=True)]
    odds = -1.5 * (np.log(lengths) - 6) / 0.6 - 4 + rng.normal(0, 0.5, count)
    return some, {f"t{i}": float(expit(x + 2 * (i % 2))) for i, x in enumerate(odds)}


def test_rates_of_untried_tasks_follow_kind_and_length() -> None:
    some, true_rates = of_lengths()
    curriculum, rng, tried = Curriculum(some, 0), np.random.default_rng(1), set[str]()

    def signal(chosen: Sequence[str]) -> float:
        return float(np.mean([true_rates[task] * (1 - true_rates[task]) for task in chosen]))

    before = np.abs(curriculum.rates() - [*true_rates.values()])
    for step in range(12):
        for task in curriculum.pick(step, 8):
            curriculum.record(step, task, int(rng.binomial(16, true_rates[task])), 16)
            tried.add(task)
    untried = [i for i, task in enumerate(some) if task.id not in tried]
    assert len(untried) > 200
    error = np.abs(curriculum.rates() - [*true_rates.values()])
    assert error[untried].mean() < 0.6 * before[untried].mean()
    later = [task for step in range(12, 22) for task in curriculum.pick(step, 8)]
    assert signal(later) > 1.3 * signal([*true_rates])


def test_rates_of_untried_tasks_follow_an_improving_policy() -> None:
    curriculum = Curriculum(tasks(200, "a"), 0)
    for step in range(50):
        curriculum.record(step, f"t{step}", 0, 16)
    assert curriculum.rates()[199] < 0.05
    for step in range(50, 100):
        curriculum.record(step, f"t{step}", 8, 16)
    assert curriculum.rates()[199] > 0.25


def test_only_first_visits_change_the_rates_of_other_tasks() -> None:
    curriculum = Curriculum(tasks(20), 0)
    curriculum.record(0, "t0", 0, 16)
    rates = curriculum.rates()[1:]
    for step in range(1, 20):
        curriculum.record(step, "t0", 16, 16)
    assert (curriculum.rates()[1:] == rates).all()
    assert curriculum.rates()[0] > 0.8


def test_results_of_one_environment_do_not_change_the_rates_of_another() -> None:
    owned = [
        replace(task, metadata={"environment": "first" if i < 10 else "second"})
        for i, task in enumerate(tasks(20))
    ]
    curriculum = Curriculum(owned, 0)
    before = curriculum.rates()
    curriculum.record(0, "t0", 16, 16)
    after = curriculum.rates()
    assert (after[1:10] > before[1:10]).all()
    assert (after[10:] == before[10:]).all()


def test_tasks_of_medium_difficulty_are_picked_first() -> None:
    curriculum = Curriculum(tasks(400, "abbbbbbbbb"), 0)
    for number in range(10):
        curriculum.record(-10, f"t{10 * number}", 8, 16)
        curriculum.record(-10, f"t{10 * number + 1}", 0, 16)
    picked = [task for step in range(20) for task in curriculum.pick(step, 4)]
    assert sum(int(task[1:]) % 10 == 0 for task in picked) > 0.7 * len(picked)


def test_a_visited_task_is_not_picked_during_its_cooldown() -> None:
    curriculum, last = Curriculum(tasks(60), 0, cooldown=5), dict[str, int]()
    for step, picked in enumerate(run(curriculum, range(40), SOLVED)):
        for task in picked:
            assert step - last.get(task, -100) > 5
            last[task] = step


def test_a_task_in_cooldown_is_not_picked_before_nearly_unsolvable_ones() -> None:
    curriculum = Curriculum(tasks(40), 0)
    for i in range(4, 40):
        curriculum.record(-10, f"t{i}", 0, 10**6)
    easy = {f"t{i}" for i in range(4)}
    assert set(curriculum.pick(0, 4)) == easy
    for task in easy:
        curriculum.record(0, task, 0, 0)  # void: the rates stay as they are
    for step in range(1, 6):
        assert not easy & set(curriculum.pick(step, 4))


def test_the_cooldown_is_ignored_if_there_are_too_few_tasks() -> None:
    curriculum = Curriculum(tasks(4), 0, cooldown=5)
    for picked in run(curriculum, range(10), SOLVED, count=3):
        assert len(picked) == 3


@pytest.mark.parametrize("before", [(), ((0, "t3", 16, 16),)])
def test_a_group_of_voids_counts_as_a_visit_but_not_as_a_result(
    before: Sequence[tuple[int, str, int, int]],
) -> None:
    curriculum = Curriculum(tasks(12), 0)
    for result in before:
        curriculum.record(*result)
    rates = curriculum.rates()
    curriculum.record(0, "t3", 0, 0)
    assert (curriculum.rates() == rates).all()
    assert all("t3" not in curriculum.pick(step, 4) for step in range(6))


def test_the_state_survives_json_exactly() -> None:
    straight, first = (Curriculum(tasks(60), 7) for _ in range(2))
    run(straight, range(20), SOLVED)
    run(first, range(9), SOLVED)
    second = Curriculum(tasks(60), 7)
    second.restore(json.loads(json.dumps(first.state())))
    run(second, range(9, 20), SOLVED)
    assert second.state() == straight.state()
    assert np.array_equal(second.rates(), straight.rates())


def test_a_state_of_other_tasks_is_refused() -> None:
    state = Curriculum(tasks(6), 0).state()
    for others in (tasks(7), tasks(6)[::-1]):
        with pytest.raises(TrainingError, match="has other tasks than the"):
            Curriculum(others, 0).restore(state)
