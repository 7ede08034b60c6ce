"""Contracts: tolerances and free orders that a description, an example or the code promises."""

from __future__ import annotations

import pytest

from envkit.env.compare import EXACT, STRICT
from envkit.environments.code_editor.graders.contract import (
    Contract,
    contract_of,
    description_of,
    is_below,
    order_counts,
)
from envkit.environments.code_editor.graders.oracle import Answer, same
from envkit.environments.code_editor.inputs.call import Call
from envkit.sandbox.programs.worker import encode


def contract(
    statement: str = "", source: str = "def f(a):\n    return a\n", parameters: str = "a"
) -> Contract:
    return contract_of(statement, parameters.split(), source, "f", STRICT, EXACT)


@pytest.mark.parametrize(
    ("statement", "levels"),
    [
        ("Return the items in any order.", 1),
        ("The order of the result does not matter.", 1),
        ("Pairs, in no particular order", 1),
        ("Power set\n\nOutput: a list of lists, each a different subset of arr", 2),
        ("Yields all possible subsets of the iterable.", 2),
        ("Return the items in order.", 0),
        ("Return True if one set is a subset of the other.", 0),
        ("Sort by any key.", 0),
        ("Return all permutations of the given list in any order.", 1),
        ("Sort items that come in any order.", 0),
        ("The order of the letters in a word does not matter. Return the words.", 0),
    ],
)
def test_free_orders(statement: str, levels: int) -> None:
    assert contract(statement).leniency.any_order == levels


@pytest.mark.parametrize(
    ("body", "free"),
    [
        ("return list(set(a))", True),
        ("return [*{x for x in a}]", True),
        ("return tuple(set(a) & set(a))", True),
        ("return sorted(set(a))", False),
        ("return list(dict.fromkeys(a))", False),
        ("if a:\n        return [1, 2]\n    return list(set(a))", False),
    ],
)
def test_a_listed_set_has_no_order(body: str, free: bool) -> None:
    assert contract(source=f"def f(a):\n    {body}\n").leniency.any_order == int(free)


def test_a_tolerance_that_the_call_gives() -> None:
    found = contract(parameters="x epsilon")
    assert found.within(Call(("2", "0.01"))) == 0.02
    assert found.within(Call(("2",), {"epsilon": "0.25"})) == 0.5
    assert found.within(Call(("2",))) == 0
    for none in ("0", "-0.5", "1000000.5", "True", "'a'", "len"):
        assert found.within(Call(("2", none))) is None, none
    assert contract(parameters="x n").within(Call(("2", "0.01"))) == 0
    default = contract_of("", ["x", "eps"], "", "f", STRICT, EXACT, {"eps": "0.25"})
    assert default.within(Call(("2",))) == 0.5
    assert default.within(Call(("2", "1"))) is None  # a number of digits


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([[1, 2, 3], [4, 6, 9], ["a", "b", "c"], []], True),
        ([[3, 2, 1], [9, 6, 4], [5, 4, 3]], True),
        ([[1, 2, 3], [4, 6, 9], [5, 3, 4]], False),
        ([[1, 2, 3], [4, 6, 9], [5, 5, 5]], False),  # two of them could be sorted by luck
        ([[1, 2, 3], [4, 6, 9], [5, 6, 7], [[2], [1]]], False),
        ([(1, 2), (3, 4), (9, 9)], True),
        ([(1, 2), (3, 4), (9, 9, 9)], False),
        ([3, 4, 5], False),
    ],
)
def test_answers_can_show_that_their_order_counts(values: list[object], counts: bool) -> None:
    assert order_counts([encode(value) for value in values]) == counts


def test_an_expected_answer_may_be_off_by_its_tolerance() -> None:
    want = Answer(encode(1.4166), within=0.02)
    assert same(want, Answer(encode(2**0.5)))
    assert not same(want, Answer(encode(1.45)))
    assert not same(Answer(encode(1.4166)), Answer(encode(2**0.5)))
    assert not same(want, Answer("1.4166"))


def test_approximations_may_be_rounded() -> None:
    found = contract("Newton-Raphson method implementation.")
    assert same(Answer(encode(1.4142136)), Answer(encode(1.4142135)), found.policy)
    assert not same(Answer(encode(1.4142136)), Answer(encode(1.4142135)), contract("Square root.").policy)


def test_free_orders_of_tuples_and_iterators_keep_their_types() -> None:
    leniency = contract("all possible subsets").leniency
    want = Answer(encode(iter([(1, 2), (3,)])))
    assert same(want, Answer(encode(iter([(3,), (2, 1)]))), STRICT, leniency)
    assert not same(want, Answer(encode([(3,), (1, 2)])), STRICT, leniency)
    assert not same(want, Answer(encode(iter([[3], [1, 2]]))), STRICT, leniency)
    assert not same(want, Answer(encode(iter([(3,), (1, 1)]))), STRICT, leniency)


def test_the_description_of_a_function() -> None:
    source = 'def f():\n    """One."""\n\n\ndef g():\n    """Two."""\n\n\n"""\nThree.\n"""\n'
    assert description_of(source, "f") == "One.\n\nThree.\n"
    assert description_of("def f(", "f") == ""


def test_numbers_below_all_examples() -> None:
    examples = (Call(("2", "0.5")), Call(("9", "0.01")))
    assert is_below(Call(("1.5", "0.5")), examples)
    assert is_below(Call(("3", "0.001")), examples)
    assert not is_below(Call(("2", "7")), examples)
    assert not is_below(Call(("'a'", "7", "-1")), examples)
