"""Generated calls for stated problems keep the properties of the examples and of the statement."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envkit.environments.code_editor.inputs.call import Call, literal
from envkit.environments.code_editor.inputs.generate import generated_calls
from envkit.environments.code_editor.inputs.rules.infer import infer_rules

Values = dict[str, Any]

scalars = st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text("ab 1.", max_size=5)
literals = st.recursive(
    scalars | st.binary(max_size=3) | st.just(float("1e999")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3)
        | st.sets(st.integers(0, 9) | st.text("ab", max_size=2), max_size=3)
    ),
    max_leaves=8,
)


def generated_arguments(
    examples: list[Values], statement: str = "", count: int = 80, seed: int = 1
) -> list[Values]:
    """Return the arguments of generated calls, by name."""
    calls = [Call((), {name: literal(value) for name, value in one.items()}) for one in examples]
    return [
        {name: ast.literal_eval(source) for name, source in call.kwargs.items()}
        for call in generated_calls(calls, seed, count, statement)
    ]


@given(st.lists(st.tuples(literals, literals), min_size=1, max_size=3), st.integers(0, 99))
def test_calls_are_pure_valid_and_new_for_any_literals(rows: list[tuple[Any, Any]], seed: int) -> None:
    examples = [Call((literal(one), literal(other))) for one, other in rows]
    calls = generated_calls(examples, seed, 6, names=["nums", "k"])
    assert calls == generated_calls(examples, seed, 6, names=["nums", "k"])
    sources = [call.source("f") for call in (*examples, *calls)]
    assert len(set(sources)) == len({call.source("f") for call in examples}) + len(calls)
    assert all(len(call.args) == 2 and not call.kwargs for call in calls)
    for call in calls:
        for source in call.args:
            ast.literal_eval(source)


def test_arguments_keep_their_names_if_examples_mix_positions_and_keywords() -> None:
    word, number = "'ab'", "2"
    for first, second in (
        (Call((word, number)), Call((), {"b": "3", "a": "'cde'"})),
        (Call((word,), {"b": number}), Call(("'cde'", "3"))),
    ):
        calls = generated_calls((first, second), 0, 40, names=["a", "b"])
        assert len(calls) == 40
        for call in calls:
            given = dict(zip(["a", "b"], call.args, strict=False)) | dict(call.kwargs)
            kinds = {name: type(ast.literal_eval(source)) for name, source in given.items()}
            assert kinds == {"a": str, "b": int}


def test_calls_do_not_depend_on_the_order_of_sets() -> None:
    code = (
        "from envkit.environments.code_editor.inputs.call import Call\n"
        "from envkit.environments.code_editor.inputs.generate import generated_calls\n"
        "print(generated_calls([Call((\"{'b', 'a', 'cd'}\", \"{'x': 1, 'y': 2}\"))], 3, 20))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout.count(b"Call(") == 20


def ascending(items: list[int]) -> bool:
    return items == sorted(items)


#: Property -> examples, problem statement, and a predicate that all generated arguments must satisfy.
PROPERTIES: dict[str, tuple[list[Values], str, Callable[[Values], bool]]] = {
    "sign and emptiness": (
        [{"a": [3, 1, 2]}, {"a": [4]}],
        "",
        lambda v: len(v["a"]) > 0 and min(v["a"]) > 0,
    ),
    "strict order": (
        [{"a": [1, 4, 6, 9, 12]}, {"a": [-3, 2, 3, 5]}],
        "",
        lambda v: all(one < other for one, other in itertools.pairwise(v["a"])),
    ),
    "an order that words hint at": ([{"a": [7, 5, 2]}], "descending", lambda v: ascending(v["a"][::-1])),
    "distinct where it is said": (
        [{"a": [5, 1]}, {"a": [2, 8, 3]}],
        "distinct integers",
        lambda v: len({*v["a"]}) == len(v["a"]),
    ),
    "even length where it is said": (
        [{"a": [1, 2]}, {"a": [4, 4, 2, 9]}],
        "of even length",
        lambda v: len(v["a"]) % 2 == 0,
    ),
    "a length that is said": (
        [{"a": [1, 2, 3]}, {"a": [4, 4, 2]}],
        "an array of length 3",
        lambda v: len(v["a"]) == 3,
    ),
    "lists of one length": (
        [{"a": [1, 2], "b": [3, 4]}, {"a": [5], "b": [6]}],
        "",
        lambda v: len(v["a"]) == len(v["b"]),
    ),
    "a count": ([{"n": 2, "a": [3, 4]}, {"n": 1, "a": [9]}], "", lambda v: v["n"] == len(v["a"])),
    "a half count": (
        [{"n": 2, "a": [3, 4, 1, 5]}, {"n": 1, "a": [9, 7]}],
        "",
        lambda v: v["n"] == len(v["a"]) // 2,
    ),
    "a bound by name": ([{"n": 9, "k": 2}, {"n": 4, "k": 1}], "", lambda v: v["k"] <= v["n"]),
    "rearranged": (
        [{"s": "abcd", "t": "dabc"}, {"s": "xy", "t": "yx"}],
        "",
        lambda v: sorted(v["s"]) == sorted(v["t"]),
    ),
    "the same items": (
        [{"s": "abcdef"}, {"s": "fbcdea"}],
        "",
        lambda v: sorted(v["s"]) == [*"abcdef"],
    ),
    "rows of one length": (
        [{"g": [[1, 2, 3, 4, 5], [3, 4, 1, 1, 9]]}, {"g": [[1, 7, 7, 5, 5]]}],
        "",
        lambda v: len({len(row) for row in v["g"]}) == 1,
    ),
    "square tables": (
        [{"g": [[1, 2], [3, 4]]}, {"g": [[1, 2, 3], [7, 5, 5], [9, 9, 1]]}],
        "an n x n matrix",
        lambda v: all(len(row) == len(v["g"]) for row in v["g"]),
    ),
    "sorted tables": (
        [{"g": [[1, 3, 5, 7, 8], [10, 11, 16, 20, 21]], "target": 3}, {"g": [[2, 4, 6, 7, 9]], "target": 1}],
        "",
        lambda v: ascending([cell for row in v["g"] for cell in row]),
    ),
    "spans": (
        [{"a": [[1, 4], [2, 3]]}, {"a": [[7, 9], [1, 8], [5, 6]]}],
        "",
        lambda v: all(first < last for first, last in v["a"]),
    ),
    "codes": (
        [{"g": [[2, 1, 1], [1, 1, 0], [0, 1, 1]]}, {"g": [[0, 2, 1]]}],
        "",
        lambda v: all(cell in (0, 1, 2) for row in v["g"] for cell in row),
    ),
    "trees": (
        [{"n": 4, "edges": [[0, 1], [1, 2], [1, 3]]}, {"n": 3, "edges": [[2, 0], [1, 2]]}],
        "a tree of n nodes",
        lambda v: len({node for pair in v["edges"] for node in pair}) == v["n"] == len(v["edges"]) + 1,
    ),
    "neighbours": (
        [{"graph": [[1, 2], [0], [0]]}, {"graph": [[1], [0, 3], [3], [1, 2]]}],
        "an undirected graph",
        lambda v: all(i in v["graph"][j] for i, row in enumerate(v["graph"]) for j in row),
    ),
    "parents": (
        [{"parent": [-1, 0, 0, 1], "s": "abac"}, {"parent": [-1, 0, 1], "s": "aab"}],
        "",
        lambda v: v["parent"][0] == -1 and all(0 <= p < i for i, p in enumerate(v["parent"]) if i),
    ),
    "pointers": (
        [{"s": "abcde", "q": [[0, 4]]}, {"s": "xyz", "q": [[1, 2], [0, 1]]}],
        "each index is within s",
        lambda v: all(0 <= at < len(v["s"]) for pair in v["q"] for at in pair),
    ),
    "one of the items": (
        [{"a": [4, 7, 9], "x": 7}, {"a": [5, 1], "x": 5}],
        "x is guaranteed to be there",
        lambda v: v["x"] in v["a"],
    ),
    "forms of text": (
        [{"s": "12:30"}, {"s": "09:05"}],
        "",
        lambda v: len(v["s"]) == 5 and v["s"][2] == ":" and 9 <= int(v["s"][:2]) <= 12,
    ),
    "words": (
        [{"s": "the sky is blue"}, {"s": "a good day"}],
        "",
        lambda v: v["s"] == " ".join(v["s"].split()) != "",
    ),
    "operators between numbers": (
        [{"s": "3+20*2"}, {"s": "3*2"}, {"s": "15+5"}],
        "",
        lambda v: all(part.isdigit() for part in v["s"].replace("*", "+").split("+")),
    ),
    "brackets": (
        [{"s": "((a)b)"}, {"s": "(c)"}, {"s": "a"}],
        "",
        lambda v: v["s"].count("(") == v["s"].count(")"),
    ),
    "single characters": (
        [{"g": [["x", "o"], ["o", "o"]]}, {"g": [["x"]]}],
        "",
        lambda v: all(len(cell) == 1 for row in v["g"] for cell in row),
    ),
}


@pytest.mark.parametrize("case", PROPERTIES.values(), ids=PROPERTIES.keys())
def test_generated_arguments_keep_the_properties_of_the_examples(
    case: tuple[list[Values], str, Callable[[Values], bool]],
) -> None:
    examples, statement, holds = case
    assert all(holds(example) for example in examples)
    found = generated_arguments(examples, statement)
    assert len(found) > 5
    assert [one for one in found if not holds(one)] == []


def test_properties_that_may_be_coincidence_are_not_kept() -> None:
    found = generated_arguments([{"a": [1, 2], "x": 2, "y": 3}, {"a": [3, 5], "x": 4, "y": 9}])
    assert any(not ascending(one["a"]) for one in found)
    assert any(len({*one["a"]}) < len(one["a"]) for one in found)
    assert any(one["x"] > one["y"] for one in found)
    assert len({len(one["a"]) for one in found}) > 3


@pytest.mark.parametrize("count", [30, 50, 240])
def test_long_sorted_lists_stay_sorted(count: int) -> None:
    items = [1] * count + [2] * count + [3] * count
    assert "ascending: a" in [rule.name for rule in infer_rules([{"a": items}])]
    assert "ascending: a" not in [rule.name for rule in infer_rules([{"a": [1] * count}])]


def test_numbers_too_large_for_a_float_are_numbers() -> None:
    assert generated_arguments([{"n": 10**310}, {"n": 3}])


def test_early_calls_are_closer_to_the_examples_than_later_ones() -> None:
    found = generated_arguments([{"n": 20}, {"n": 7}])
    assert all(one["n"] <= 24 for one in found[:10])
    assert max(one["n"] for one in found) > 40


def test_inferred_rules_are_named_and_fit_all_examples() -> None:
    names = [rule.name for rule in infer_rules([{"a": [2, 3], "k": 1}, {"a": [9], "k": 1}])]
    assert "k <= len(a)" in names
    assert "k == len(a)" not in names


def test_example_calls_with_arguments_that_are_no_literals_are_ignored() -> None:
    examples = [Call(("lambda x: x", "[1]")), Call(("3", "[4, 5]")), Call(("2", "[7]"))]
    found = generated_calls(examples, 0, 20)
    assert found
    assert all("lambda" not in call.source("f") for call in found)
    assert generated_calls(examples[:1], 0, 20) == []
    assert generated_calls([], 0, 20) == []
