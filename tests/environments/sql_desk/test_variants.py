"""Wrong and right answers of the SQL desk: the judge tells them apart, whatever the grader says."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from envkit.environments.sql_desk.tasks import BY_NAME, generate
from envkit.environments.sql_desk.variants import Judge, right_answers, variants_of, wrong_answers

TASKS = {str(task.metadata["source"]): task for task in generate("train", per_question=1)}


def test_the_judge_finds_other_words_right_and_near_misses_wrong() -> None:
    task = TASKS["products list-above"]
    with contextlib.closing(Judge(BY_NAME["products"])) as judge:
        assert not any(judge.is_wrong(task, sql) for _, sql in right_answers(task))
        reference = str(task.hidden["reference"])
        assert judge.is_wrong(task, reference.replace(" > ", " >= "))
        assert judge.is_wrong(task, f"{reference} LIMIT 100")
        assert not judge.is_wrong(task, f"{reference} LIMIT 10000")
        assert not judge.is_wrong(task, "SELECT absent FROM products")  # no SQL, so no near miss


def test_only_the_order_of_rows_that_counts_makes_an_answer_wrong() -> None:
    task = TASKS["products sorted"]
    shuffled = "SELECT name FROM products ORDER BY name"
    free = replace(task, hidden={**task.hidden, "ordered": False})
    with contextlib.closing(Judge(BY_NAME["products"])) as judge:
        assert judge.is_wrong(task, shuffled)
        assert not judge.is_wrong(free, shuffled)


@pytest.mark.parametrize("source", ["books total-each", "films remove"])
def test_each_question_has_wrong_and_right_answers(source: str) -> None:
    found = variants_of(TASKS[source])
    assert {variant.is_right for variant in found} == {True, False}
    assert len({variant.actions for variant in found}) == len(found)


def test_a_change_is_judged_by_the_tables_it_leaves() -> None:
    task = TASKS["plants remove"]
    with contextlib.closing(Judge(BY_NAME["plants"])) as judge:
        wrong = {miss.rule for miss in wrong_answers(task, judge)}
    assert {"half of the work", "bound on an id"} <= wrong
