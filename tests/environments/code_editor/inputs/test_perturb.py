"""Perturbed calls: repeatable for a seed, new to the candidate, and close to valid examples."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envkit.environments.code_editor.inputs.call import Call, literal
from envkit.environments.code_editor.inputs.perturb import perturbed_calls

literals = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-99, 99)
    | st.floats(-9, 9)
    | st.text("abc ")
    | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3)
        | st.sets(st.integers(0, 9), max_size=3)
    ),
    max_leaves=8,
)


def perturbed_arguments(*sources: str, count: int = 40) -> list[Any]:
    """Return the first arguments of calls perturbed from the given one-argument examples."""
    return [
        ast.literal_eval(call.args[0])
        for call in perturbed_calls([Call((one,)) for one in sources], 1, count)
    ]


@given(st.lists(st.tuples(literals, literals), min_size=1, max_size=3), st.integers(0, 99))
def test_fresh_calls_are_pure_valid_and_new(rows: list[tuple[Any, Any]], seed: int) -> None:
    examples = [Call((literal(one),), {"key": literal(other)}) for one, other in rows]
    calls = perturbed_calls(examples, (seed, 2), 6)
    assert calls == perturbed_calls(examples, (seed, 2), 6)
    sources = [call.source("f") for call in (*examples, *calls)]
    assert len(set(sources)) == len({call.source("f") for call in examples}) + len(calls)
    for call in calls:
        assert len(call.args) == 1
        for source in (*call.args, *call.kwargs.values()):
            ast.literal_eval(source)


def test_the_seed_determines_the_calls() -> None:
    examples = [Call(("[5, 3, 8, 1]", "'some words here'"))]
    assert perturbed_calls(examples, 1, 10) != perturbed_calls(examples, 2, 10)
    assert perturbed_calls(examples, (1, 2, 3), 10) != perturbed_calls(examples, (1, 2, 4), 10)
    assert perturbed_calls(examples, 1, 10)[:4] == perturbed_calls(examples, 1, 4)


def test_another_process_with_another_hash_seed_gives_the_same_calls() -> None:
    program = (
        "from envkit.environments.code_editor.inputs.call import Call\n"
        "from envkit.environments.code_editor.inputs.perturb import perturbed_calls\n"
        "print(perturbed_calls([Call((\"{'a', 'b', 'c'}\", \"{'x': {1, 2}, 'y': 'abc'}\"))], 7, 20))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_arguments_that_are_no_literals_are_kept() -> None:
    calls = perturbed_calls([Call(("lambda x: x + 1", "iter([1, 2, 3])", "operator.add"))], 0, 20)
    assert calls
    for call in calls:
        assert call.args[0] == "lambda x: x + 1"
        assert call.args[1].startswith("iter([")
        assert call.args[2] == "operator.add"


@pytest.mark.parametrize("endless", ["itertools.count()", "itertools.cycle('ab')", "itertools.repeat(1)"])
def test_calls_with_endless_iterators_are_not_perturbed(endless: str) -> None:
    assert perturbed_calls([Call((endless, "3"))], 0, 10) == []


def test_without_a_perturbable_argument_there_are_no_calls() -> None:
    assert perturbed_calls([], 0, 10) == []
    assert perturbed_calls([Call(())], 0, 10) == []
    assert perturbed_calls([Call(("len",))], 0, 10) == []


def test_sorted_lists_mostly_stay_sorted() -> None:
    found = perturbed_arguments("[1, 3, 5, 7, 9]")
    assert sum(items == sorted(items) for items in found) >= 0.8 * len(found)


def test_tables_keep_their_shape() -> None:
    for table in perturbed_arguments("[[1, 2, 3], [4, 5, 6]]"):
        assert table == [] or ([len(row) for row in table] == [3, 3])


def test_texts_keep_their_alphabet() -> None:
    assert set("".join(perturbed_arguments("'10110'", "'(0)'"))) <= set("01()")


def test_numbers_stay_near_those_of_the_examples() -> None:
    assert all(abs(value) <= 40 for value in perturbed_arguments("7", "3"))
    assert any(value not in (7, 3) for value in perturbed_arguments("7", "3"))


def test_sets_are_written_in_one_order() -> None:
    assert literal({"b", "a", "c"}) == "{'a', 'b', 'c'}"
    assert literal((set(), [1], {"k": (2,)})) == "(set(), [1], {'k': (2,)})"
