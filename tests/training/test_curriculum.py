"""The curriculum seeks mixed groups, lets visited sources rest, and goes on exactly where it stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

from envkit.errors import TrainingError
from envkit.training.curriculum import Curriculum
from envkit.types import Task


def tasks(count: int, operators: str = "ab") -> list[Task]:
    return [Task(f"t{i}", "train", "", {}, {"operator": operators[i % len(operators)]}) for i in range(count)]


def run(curriculum: Curriculum, steps: range, solved_of: dict[str, int], count: int = 4) -> list[list[str]]:
    """Visit what is picked; ``solved_of`` gives each task's solved episodes of 8."""
    picked: list[list[str]] = []
    for step in steps:
        picked.append(curriculum.pick(step, count))
        for task in picked[-1]:
            curriculum.record(step, task, solved_of[task], 8)
    return picked


SOLVED = {f"t{i}": (0, 4, 8, 2, 0, 8)[i % 6] for i in range(60)}


def test_equal_seeds_pick_equally_and_others_do_not() -> None:
    first, again, other = (run(Curriculum(tasks(60), seed), range(10), SOLVED) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_picks_are_distinct_and_as_many_as_there_are() -> None:
    curriculum = Curriculum(tasks(5), 0)
    for step in range(20):
        assert len(set(curriculum.pick(step, 3))) == 3
        assert sorted(curriculum.pick(step, 9)) == ["t0", "t1", "t2", "t3", "t4"]


def test_environments_take_turns_whichever_is_easier() -> None:
    first, second = tasks(20, "a"), [replace(task, id=f"u{i}") for i, task in enumerate(tasks(3, "b"))]
    some = [
        replace(task, metadata={**task.metadata, "environment": name})
        for name, own in (("one", first), ("other", second))
        for task in own
    ]
    rates = {task.id: 0.5 if task in some[:20] else 0.0 for task in some}
    curriculum = Curriculum(some, 0, rates)
    picked = [curriculum.pick(step, 3) for step in range(4)]
    assert [sum(task.startswith("u") for task in each) for each in picked] == [1, 2, 1, 2]
    assert sorted(each[0] for each in curriculum.pick(0, 12)) == ["t"] * 9 + ["u"] * 3, "it has no more"


def test_many_picks_of_one_source_come_to_an_end() -> None:
    assert len(set(Curriculum(of_one_source(tasks(100)), 0).pick(0, 100))) == 100


def of_one_source(some: list[Task]) -> list[Task]:
    return [replace(task, metadata={**task.metadata, "source": "f"}) for task in some]


def test_mixed_tasks_are_visited_more() -> None:
    solved = {f"t{i}": (0, 4, 8)[i % 3] for i in range(30)}
    curriculum = Curriculum(of_one_source(tasks(30, "a")), 0, rest=1)
    visits = Counter(task for step in run(curriculum, range(120), solved) for task in step)
    by_kind = [sum(n for task, n in visits.items() if solved[task] == kind) for kind in (0, 4, 8)]
    assert by_kind[1] > 1.5 * by_kind[0]
    assert by_kind[1] > 1.5 * by_kind[2]


def test_sources_that_were_seen_before_wait_for_new_ones() -> None:
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


def test_an_operators_results_move_tasks_not_tried_yet() -> None:
    curriculum = Curriculum(tasks(20), 0)
    before = curriculum.rates()
    assert (before == before[0]).all()
    for step in range(6):
        curriculum.record(step, f"t{2 * step}", 8, 8)  # operator a
    after = curriculum.rates()
    assert after[18] > before[18] + 0.2
    assert after[19] == before[19]
    assert ((after > 0) & (after < 1)).all()


def test_an_estimate_stands_until_results_speak() -> None:
    curriculum = Curriculum(tasks(3), 0, {"t0": 0.5, "t1": 0.01})
    assert curriculum.rates()[:2] == pytest.approx([0.5, 0.01])
    assert curriculum.rates()[2] == pytest.approx(1 / 3)
    curriculum.record(0, "t1", 8, 8)
    assert curriculum.rates()[1] > 0.5


def estimated(count: int = 200) -> tuple[list[Task], dict[str, float]]:
    """Tasks with estimates between 1e-6 and 0.1, shuffled."""
    estimates = np.random.default_rng(0).permutation(np.logspace(-6, -1, count))
    return tasks(count), {f"t{i}": float(rate) for i, rate in enumerate(estimates)}


@pytest.mark.parametrize("slope", [0.6, 1.0])
def test_estimates_follow_a_policy_that_has_become_better(slope: float) -> None:
    some, estimates = estimated()
    now = {task: float(expit(6 + slope * logit(rate))) for task, rate in estimates.items()}
    curriculum, rng, met = Curriculum(some, 0, estimates), np.random.default_rng(1), set[str]()
    apart = np.abs(curriculum.rates() - [*now.values()]).mean()
    for step in range(12):
        for task in curriculum.pick(step, 8):
            curriculum.record(step, task, int(rng.binomial(16, now[task])), 16)
            met.add(task)
    left = [i for i, task in enumerate(some) if task.id not in met]
    assert len(left) > 50
    wrong = np.abs(curriculum.rates() - [*now.values()])[left]
    assert wrong.mean() < 0.25 * apart
    # and so it looks next where groups are mixed, which is half of the tasks or less
    later = [now[task] for step in range(12, 20) for task in curriculum.pick(step, 8)]
    assert np.mean([0.05 < rate < 0.95 for rate in later]) > 0.75


def test_what_is_known_by_heart_does_not_move_estimates() -> None:
    some, estimates = estimated(20)
    curriculum = Curriculum(some, 0, estimates)
    curriculum.record(0, "t0", 0, 16)
    rates = curriculum.rates()[1:]
    for step in range(1, 20):
        curriculum.record(step, "t0", 16, 16)
    assert (curriculum.rates()[1:] == rates).all()


def test_one_environments_results_do_not_move_anothers_estimates() -> None:
    some, estimates = estimated(20)
    owned = [
        replace(task, metadata={"environment": "first" if i < 10 else "second"})
        for i, task in enumerate(some)
    ]
    curriculum = Curriculum(owned, 0, estimates)
    before = curriculum.rates()
    curriculum.record(0, "t0", 16, 16)
    after = curriculum.rates()
    assert (after[1:10] > before[1:10]).all()
    assert (after[10:] == before[10:]).all()


def test_moved_estimates_keep_their_order_and_the_hopeless_stays_so() -> None:
    some, estimates = estimated(40)
    by_rate = sorted(estimates, key=lambda task: estimates[task])
    curriculum = Curriculum([*some, Task("none", "train", "", {}, {})], 0, {**estimates, "none": 0.0})
    for step, task in enumerate(by_rate[:30]):  # the easier it was thought to be, the less it is solved
        curriculum.record(step, task, 16 if step < 15 else 0, 16)
    rates = dict(zip([*estimates, "none"], curriculum.rates(), strict=True))
    left = [rates[task] for task in by_rate[30:]]
    assert left == sorted(left)
    assert len(set(left)) == len(left)
    assert rates["none"] == 0


def test_tasks_of_middling_difficulty_come_first() -> None:
    estimates = {f"t{i}": 0.5 if i < 10 else 0.001 for i in range(200)}
    curriculum = Curriculum(tasks(200), 0, estimates)
    picked = [task for step in range(0, 60, 6) for task in curriculum.pick(step, 4)]
    assert sum(estimates[task] == 0.5 for task in picked) > 0.8 * len(picked)


def test_a_visited_task_rests() -> None:
    curriculum, last = Curriculum(tasks(60), 0, rest=5), dict[str, int]()
    for step, picked in enumerate(run(curriculum, range(40), SOLVED)):
        for task in picked:
            assert step - last.get(task, -100) > 5
            last[task] = step


def test_what_rests_waits_for_tasks_that_look_nearly_hopeless() -> None:
    some = tasks(40)
    curriculum = Curriculum(some, 0, {task.id: 0.5 if i < 4 else 1e-5 for i, task in enumerate(some)})
    easy = {f"t{i}" for i in range(4)}
    assert set(curriculum.pick(0, 4)) == easy
    for task in easy:
        curriculum.record(0, task, 0, 0)  # void: estimates stay as they are
    for step in range(1, 6):
        assert not easy & set(curriculum.pick(step, 4))


def test_rest_is_given_up_where_there_are_too_few_tasks() -> None:
    curriculum = Curriculum(tasks(4), 0, rest=5)
    for picked in run(curriculum, range(10), SOLVED, count=3):
        assert len(picked) == 3


@pytest.mark.parametrize("before", [(), ((0, "t3", 16, 16),)])
def test_a_group_of_voids_counts_as_a_visit_only(before: Sequence[tuple[int, str, int, int]]) -> None:
    curriculum = Curriculum(tasks(12), 0)
    for result in before:
        curriculum.record(*result)
    rates = curriculum.rates()
    curriculum.record(0, "t3", 0, 0)
    assert (curriculum.rates() == rates).all()
    assert all("t3" not in curriculum.pick(step, 4) for step in range(6))


def test_the_state_goes_through_json_exactly() -> None:
    estimates = {f"t{i}": 0.001 * (i + 1) for i in range(40)}
    straight, first = (Curriculum(tasks(60), 7, estimates) for _ in range(2))
    run(straight, range(20), SOLVED)
    run(first, range(9), SOLVED)
    second = Curriculum(tasks(60), 7, estimates)
    second.restore(json.loads(json.dumps(first.state())))
    run(second, range(9, 20), SOLVED)
    assert second.state() == straight.state()
    assert np.array_equal(second.rates(), straight.rates())


def test_a_state_of_other_tasks_is_refused() -> None:
    state = Curriculum(tasks(6), 0).state()
    for others in (tasks(7), tasks(6)[::-1]):
        with pytest.raises(TrainingError, match="has other tasks than the"):
            Curriculum(others, 0).restore(state)
