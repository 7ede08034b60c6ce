"""The division of a budget of minutes among evaluation, warm start and RL."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import cast

import pytest

from envkit.cli.train import demo_arguments
from envkit.errors import UsageError
from envkit.runs.before_after.plan import PlanInputs, plan, require_useful, steps_in_time
from envkit.runs.before_after.probe import Lengths, Speed, probe
from envkit.training.config import TrainConfig, from_mapping
from envkit.training.policy import Policy

SPEED = Speed(learn=300.0, prefill=1000.0, step_s=0.06, row_s=0.001)
LENGTHS = Lengths(prompt=150, answer=64, example=214, turns=1)
#: Settings of `make demo MINUTES=3`, and the lengths of what it trains on, sql-desk.
SQL_LENGTHS = Lengths(prompt=264, answer=19, example=283, turns=1)
SHORT = from_mapping(demo_arguments(3)["config"], "demo")


def test_what_is_switched_off_stays_off_under_a_budget() -> None:
    sized = plan(20, PlanInputs(SPEED, LENGTHS, TrainConfig(sft_examples=0), 5, 646, 1292))
    assert (sized.heldout_tasks, sized.train.sft_examples) == (5, 0)
    both = plan(20, PlanInputs(SPEED, LENGTHS, TrainConfig(), 446, 2000, 4000))
    alone = plan(20, PlanInputs(SPEED, LENGTHS, TrainConfig(max_steps=0), 446, 2000, 4000))
    assert alone.train.max_steps == 0
    assert alone.train.sft_examples > 2 * both.train.sft_examples


def test_without_an_evaluation_its_part_of_the_budget_goes_to_training() -> None:
    with_it, without = (
        plan(20, PlanInputs(SPEED, LENGTHS, TrainConfig(), heldout, 646, 1292)) for heldout in (446, 0)
    )
    assert without.heldout_tasks == 0
    assert without.train.max_steps > 1.2 * with_it.train.max_steps


def test_without_a_warm_start_answers_are_planned_at_the_length_limit() -> None:
    steps: list[int] = []
    for examples in (0, 720):
        for most in (64, 128):
            config = TrainConfig(sft_examples=examples, max_completion_length=most)
            steps.append(plan(20, PlanInputs(SPEED, LENGTHS, config, 446, 646, 1292)).train.max_steps)
    assert steps[0] > 1.6 * steps[1]
    assert steps[2] < 1.4 * steps[3]  # only the last of a step's answers may be as long


def test_a_longer_budget_buys_more_of_everything() -> None:
    short, long, longest = (
        plan(minutes, PlanInputs(SPEED, LENGTHS, TrainConfig(), 900, 646, 1292)) for minutes in (5, 60, 240)
    )
    assert short.heldout_tasks < long.heldout_tasks < longest.heldout_tasks == 900
    assert short.train.sft_examples < long.train.sft_examples == longest.train.sft_examples == 636
    assert 1 <= short.train.max_steps < long.train.max_steps
    played = [sized.train.max_steps * sized.train.groups_per_step for sized in (short, long, longest)]
    assert played == sorted(played)
    assert short.train.groups_per_step == TrainConfig().groups_per_step < longest.train.groups_per_step
    assert longest.train.max_steps < 60


def test_a_budget_holds_for_environments_with_longer_texts_and_more_turns() -> None:
    usual, longer, several = (
        plan(40, PlanInputs(SPEED, lengths, TrainConfig(max_turns=turns), 900, 2000, 4000))
        for lengths, turns in ((LENGTHS, 1), (Lengths(800, 64, 864, 1), 1), (replace(LENGTHS, turns=4), 4))
    )
    for other in (longer, several):
        assert other.heldout_tasks < usual.heldout_tasks
        groups, more = (one.train.max_steps * one.train.groups_per_step for one in (other, usual))
        assert groups < 0.7 * more
    assert longer.train.sft_examples < usual.train.sft_examples


def test_a_trained_model_is_expected_to_end_about_where_demonstrations_end() -> None:
    ten = TrainConfig(max_turns=10)
    short, long, cold = (
        plan(60, PlanInputs(SPEED, replace(LENGTHS, turns=turns), config, 16, 2000, 4000)).train
        for turns, config in ((3, ten), (9, ten), (3, replace(ten, sft_examples=0)))
    )
    assert short.max_steps * short.groups_per_step > 1.5 * long.max_steps * long.groups_per_step
    colder = plan(60, PlanInputs(SPEED, LENGTHS, replace(ten, sft_examples=0), 16, 2000, 4000)).train
    assert (cold.max_steps, cold.groups_per_step) == (colder.max_steps, colder.groups_per_step)


def test_a_budget_that_is_too_small_is_refused_and_a_sufficient_one_named() -> None:
    slow = Speed(learn=40.0, prefill=100.0, step_s=0.5, row_s=0.01)
    inputs = PlanInputs(slow, LENGTHS, TrainConfig(), 446, 646, 1292)
    with pytest.raises(UsageError, match="learns from 40 and reads 100 tokens per second") as refusal:
        require_useful(1, inputs)
    advised = re.search(r"give --minutes (\d+);", str(refusal.value))
    assert advised is not None
    enough = int(advised[1])
    require_useful(enough, inputs)
    assert plan(enough, inputs).train.max_steps >= 2
    with pytest.raises(UsageError):
        require_useful(enough - 1, inputs)


def test_the_advised_budget_is_that_of_all_adapters() -> None:
    slow = Speed(learn=40.0, prefill=100.0, step_s=0.5, row_s=0.01)
    inputs = PlanInputs(slow, LENGTHS, TrainConfig(), 446, 646, 1292)
    with pytest.raises(UsageError, match=r"--minutes 3 allows each of 3 adapters") as refusal:
        require_useful(1, inputs, 3)
    advised = re.search(r"give --minutes (\d+);", str(refusal.value))
    assert advised is not None
    require_useful(int(advised[1]) / 3, inputs, 3)


def test_a_step_has_no_more_groups_than_there_are_tasks() -> None:
    few = plan(240, PlanInputs(SPEED, LENGTHS, TrainConfig(), 16, 646, 4))
    many = plan(240, PlanInputs(SPEED, LENGTHS, TrainConfig(), 16, 646, 4000))
    assert few.train.groups_per_step == 4 < many.train.groups_per_step
    assert few.train.max_steps > many.train.max_steps


def test_few_tasks_for_the_warm_start_are_no_reason_to_refuse() -> None:
    require_useful(20, PlanInputs(SPEED, LENGTHS, TrainConfig(), 446, 2, 4))


@pytest.mark.parametrize(
    ("left_s", "step", "spent_s", "steps"),
    [
        (300.0, 0, 0.0, 30),  # as planned
        (300.0, 2, 20.0, 32),
        (300.0, 2, 60.0, 17),  # three times as slow: two such steps and two planned ones take 80 s
        (300.0, 98, 480.0, 158),  # twice as fast
        (4.0, 98, 480.0, 98),
        (-50.0, 7, 70.0, 7),  # the steps that were taken count
        (-50.0, 0, 0.0, 2),
    ],
)
def test_rl_takes_the_steps_that_there_is_time_for(
    left_s: float, step: int, spent_s: float, steps: int
) -> None:
    assert steps_in_time(left_s, step, spent_s, 10.0) == steps


def test_the_forecast_of_the_steps_fits_the_budget() -> None:
    sized = plan(20, PlanInputs(SPEED, LENGTHS, TrainConfig(), 446, 646, 1292))
    assert 0 < sized.step_s * sized.train.max_steps < 20 * 60


def test_a_busy_machine_is_reported_and_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([(SPEED, 3.0), (Speed(400.0, 900.0, 0.05, 0.002), 1.0)])
    monkeypatch.setattr("envkit.runs.before_after.probe.measure", lambda policy: next(speeds))
    monkeypatch.setattr("envkit.runs.before_after.probe.CpuTimes.now", lambda: None)
    said: list[str] = []
    assert probe(cast(Policy, None), said.append) == Speed(400.0, 1000.0, 0.05, 0.001)
    assert said == ["this machine is busy: equal work took up to 3.0 times as long; measuring again"]


def test_three_minutes_are_enough_with_the_second_core_busy() -> None:
    quiet = Speed(learn=288.0, prefill=868.0, step_s=0.045, row_s=0.00125)  # two cores, measured
    halved = Speed(learn=144.0, prefill=434.0, step_s=0.09, row_s=0.0025)
    for speed, tasks in ((quiet, 32), (halved, 16)):
        require_useful(3, PlanInputs(speed, SQL_LENGTHS, SHORT, 446, 646, 1292))
        sized = plan(3, PlanInputs(speed, SQL_LENGTHS, SHORT, 446, 646, 1292))
        assert sized.heldout_tasks == tasks
        assert sized.train.sft_examples >= 24
        assert sized.train.max_steps >= 2


def test_a_machine_that_is_too_slow_for_any_answer_is_refused() -> None:
    with pytest.raises(UsageError, match="allows 0 known answers"):
        require_useful(1, PlanInputs(Speed(4.0, 10.0, 5.0, 0.1), LENGTHS, TrainConfig(), 446, 646, 1292))
