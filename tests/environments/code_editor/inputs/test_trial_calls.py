"""Calls to try on a function that does not say what it takes."""

from __future__ import annotations

import ast

import pytest

from envkit.environments.code_editor.inputs.trial_calls import calls_that_fit, trial_calls
from envkit.runtime.syntax import parse


def calls(header: str) -> list[tuple[str, ...]]:
    [function] = parse(f"def f({header}): pass").body
    assert isinstance(function, ast.FunctionDef)
    return [call.args for call in trial_calls(function)]


def test_every_combination_of_kinds_is_tried() -> None:
    one, two = calls("a"), calls("a, b=1")
    assert one == two
    assert len(one) == 7 * 4
    assert len(calls("a, b")) == 7 * 7 * 4
    assert all(len(args) == 3 for args in calls("a, b, /, c"))
    for args in calls("a, b"):
        for source in args:
            ast.literal_eval(source)


@pytest.mark.parametrize("header", ["", "a=1", "a, b, c, d", "a, *, key"])
def test_functions_that_are_not_tried(header: str) -> None:
    assert calls(header) == []


def test_optional_keywords_do_not_matter() -> None:
    assert calls("a, *rest, key=None, **others") == calls("a")


def test_the_kinds_with_the_most_different_answers_fit() -> None:
    answers = ["1", "1", "2", None, "1", "1", "3", None, "a", "a", "b", "c", "d", "e", "f", None]
    assert calls_that_fit(answers) == [8, 10, 11, 9]
    assert calls_that_fit(answers[:4]) == []
    assert calls_that_fit([None] * 8) == calls_that_fit([]) == []
