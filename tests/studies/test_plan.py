"""How a budget is divided."""

from __future__ import annotations

from envkit.studies.plan import Lengths, Speed, plan
from envkit.training.config import TrainConfig

SPEED = Speed(learn=300.0, prefill=1000.0, step_s=0.06, row_s=0.001)
LENGTHS = Lengths(prompt=150, answer=64)


def test_what_is_switched_off_stays_off_under_a_budget() -> None:
    sized = plan(20, SPEED, LENGTHS, TrainConfig(sft_examples=0, curriculum_tasks=0), 5, 646)
    assert (sized.heldout_tasks, sized.train.sft_examples, sized.train.curriculum_tasks) == (5, 0, 0)


def test_without_an_evaluation_its_part_of_the_budget_goes_to_training() -> None:
    with_it, without = (plan(20, SPEED, LENGTHS, TrainConfig(), heldout, 646) for heldout in (446, 0))
    assert without.heldout_tasks == 0
    assert without.train.max_steps > 1.2 * with_it.train.max_steps


def test_a_model_that_was_shown_no_answer_is_planned_to_talk_as_long_as_it_may() -> None:
    steps: list[int] = []
    for examples in (0, 720):
        for most in (64, 128):
            config = TrainConfig(sft_examples=examples, max_completion_length=most)
            steps.append(plan(20, SPEED, LENGTHS, config, 446, 646).train.max_steps)
    assert steps[0] > 1.6 * steps[1]
    assert steps[2] < 1.4 * steps[3]  # only the last of a step's answers may be as long


def test_a_longer_budget_buys_more_of_everything() -> None:
    short, long, longest = (
        plan(minutes, SPEED, LENGTHS, TrainConfig(), 446, 646) for minutes in (5, 60, 240)
    )
    assert short.heldout_tasks < long.heldout_tasks < longest.heldout_tasks == 446
    assert short.train.sft_examples < long.train.sft_examples == longest.train.sft_examples == 636
    assert 1 <= short.train.max_steps < long.train.max_steps
    played = [sized.train.max_steps * sized.train.groups_per_step for sized in (short, long, longest)]
    assert played == sorted(played)
    assert short.train.groups_per_step == 6 < longest.train.groups_per_step
    assert longest.train.max_steps < 60


def test_a_budget_holds_for_environments_with_longer_texts_and_more_turns() -> None:
    usual, longer, several = (
        plan(20, SPEED, lengths, TrainConfig(max_turns=turns), 446, 646)
        for lengths, turns in ((LENGTHS, 1), (Lengths(600, 64), 1), (LENGTHS, 4))
    )
    for other in (longer, several):
        assert other.heldout_tasks < usual.heldout_tasks
        groups, more = (one.train.max_steps * one.train.groups_per_step for one in (other, usual))
        assert groups < 0.7 * more
    assert longer.train.sft_examples < usual.train.sft_examples
