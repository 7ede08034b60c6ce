"""Edge calls: every kind of edge of every argument, drawn from the seed, and made from an example."""

from __future__ import annotations

import ast
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envkit.environments.code_editor.inputs.call import Call, literal
from envkit.environments.code_editor.inputs.edges import (
    Edge,
    Examples,
    ReachedEdge,
    Signature,
    drawn_edges,
    edge_call,
    edges_of,
    signature_of,
)

UNKNOWN = Signature()
literals = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-99, 99)
    | st.floats(-9, 9)
    | st.complex_numbers(max_magnitude=9)
    | st.text("abc é")
    | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text("abc", max_size=2) | st.integers(0, 9), inner, max_size=3)
        | st.sets(st.integers(0, 9) | st.text("ab"), max_size=3)
    ),
    max_leaves=8,
)


def every(examples: Examples) -> list[ReachedEdge]:
    """All edges, as if the function answered each of them from every example that has it."""
    found: list[ReachedEdge] = []
    for edge in edges_of(examples):
        bases = [
            base
            for base in range(len(examples.calls))
            if edge_call(edge, base, examples, random.Random(0), vary=False) is not None
        ]
        if bases:
            found.append(ReachedEdge(edge, tuple(bases)))
    return found


def made(
    kind: str, *sources: str, size: int = 0, path: tuple[int | str, ...] = (0,), count: int = 30
) -> list[Any]:
    """First arguments of calls at the edge of one kind, made from one-argument examples."""
    examples = Examples([Call((source,)) for source in sources])
    [edge] = [edge for edge in edges_of(examples) if (edge.kind, edge.size, edge.path) == (kind, size, path)]
    calls = [
        edge_call(edge, base, examples, random.Random(f"{seed}"), vary=False)
        for seed in range(count)
        for base in range(len(sources))
    ]
    return [ast.literal_eval(call.args[0]) for call in calls if call is not None]


def kinds(*sources: str, signature: Signature = UNKNOWN) -> set[tuple[str, tuple[int | str, ...]]]:
    examples = Examples([Call((source,)) for source in sources], signature)
    return {(edge.kind, edge.path[1:]) for edge in edges_of(examples)}


@settings(max_examples=30)
@given(st.lists(st.tuples(literals, literals), min_size=1, max_size=2), st.integers(0, 99))
def test_drawn_calls_are_pure_valid_and_new(rows: list[tuple[Any, Any]], seed: int) -> None:
    examples = Examples([Call((literal(one),), {"key": literal(other)}) for one, other in rows])
    reached = every(examples)
    drawn = drawn_edges(examples, reached, seed)
    assert drawn == drawn_edges(examples, reached, seed)
    sources = [call.source("f") for calls in drawn for call in calls]
    assert len(set(sources)) == len(sources)
    for calls in drawn:
        for call in calls:
            for source in (*call.args, *call.kwargs.values()):
                ast.literal_eval(source)
    # A second set has none of the first one's calls.
    again = drawn_edges(examples, reached, seed + 1, {call.source("") for calls in drawn for call in calls})
    assert not {call.source("f") for calls in again for call in calls} & set(sources)


def test_every_kind_of_edge_of_every_argument_is_in_every_draw() -> None:
    examples = Examples([Call(("[3, 1, 2]", "'ab'", "5")), Call(("[4, 4]", "'c d'", "2"))])
    reached = every(examples)
    groups = {(one.edge.kind, one.edge.places) for one in reached}
    for seed in range(20):
        values = [
            [ast.literal_eval(source) for source in calls[0].args]
            for calls in drawn_edges(examples, reached, seed)
        ]
        items, texts, numbers = zip(*values, strict=True)
        assert [] in items
        assert any(len(value) == 1 for value in items)
        assert any(len(value) == 2 and value[0] == value[1] for value in items)
        assert any(50 < len(value) < 64 for value in items)
        assert any(len(value) > 100 for value in items)
        assert any(isinstance(value, tuple) for value in items)
        assert any(item < 0 for value in items for item in value)
        assert any(item == 0 for value in items for item in value)
        assert any(item > 2**64 for value in items for item in value)
        assert "" in texts
        assert any(len(value) == 1 for value in texts)
        assert any(len(value) > 100 for value in texts)
        assert any(not value.isascii() for value in texts)
        assert {value for value in numbers if value <= 0} >= {0}
        assert any(value < 0 for value in numbers)
        assert any(value > 2**64 for value in numbers)
    assert ("empty", (0, 1)) not in groups, "a list and a text have no edge together"


def test_the_seed_determines_the_draw() -> None:
    examples = Examples([Call(("[5, 3, 8, 1]", "'some words here'"))])
    reached = every(examples)
    assert drawn_edges(examples, reached, 1) != drawn_edges(examples, reached, 2)
    program = (
        "import random\n"
        "from envkit.environments.code_editor.inputs.call import Call\n"
        "from envkit.environments.code_editor.inputs.edges import *\n"
        "examples = Examples([Call((\"{'a', 'b', 'c'}\", \"{'x': {1, 2}, 'y': {3}}\", \"'abc'\"))])\n"
        "print(drawn_edges(examples, [ReachedEdge(edge, (0,)) for edge in edges_of(examples)], 7))"
    )
    drawn = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": salt}, capture_output=True, check=True
        ).stdout
        for salt in ("1", "2")
    }
    assert len(drawn) == 1, "the order of sets changes a draw"


@pytest.mark.parametrize(
    ("kind", "size", "low", "high"),
    [
        ("large", 0, 101, 999),
        ("large", 1, 65_600, 99_999),
        ("large", 2, 2**31 + 1, 2**33),
        ("large", 3, 2**64 + 1, 2**70),
        ("negative", 0, -9, -1),
        ("negative", 1, -(2**33), -101),
        ("zero", 0, 0, 0),
    ],
)
def test_integers(kind: str, size: int, low: int, high: int) -> None:
    found = made(kind, "5", size=size)
    assert low <= min(found) <= max(found) <= high
    assert low == high or len(set(found)) > 5


def test_one_item_of_a_list_is_at_the_edge_and_at_times_all() -> None:
    found = made("negative", "[4, 7, 5]", path=(0, "item"))
    counts = [sum(item < 0 for item in value) for value in found]
    assert set(counts) == {1, 3}
    assert {len(value) for value in found} == {3}
    positions = {value.index(min(value)) for value in found if sum(item < 0 for item in value) == 1}
    assert positions == {0, 1, 2}


def test_sorted_lists_stay_sorted() -> None:
    for kind, size, path in (("large", 0, (0, "item")), ("long", 2, (0,)), ("zero", 0, (0, "item"))):
        found = made(kind, "[4, 7, 9]", "[1, 2, 3, 9]", size=size, path=path)
        assert all(value == sorted(value) for value in found)


@pytest.mark.parametrize(
    ("source", "other"), [("[1, 2]", "['a', 'b']"), ("(1, 2)", "('a', 'b')"), ("{1, 2}", "{'a', 'b'}")]
)
def test_long_values_do_not_mix_the_types_of_several_examples(source: str, other: str) -> None:
    for value in made("long", source, other, size=1):
        assert len({type(item) for item in value}) == 1


@pytest.mark.parametrize(("size", "low", "high"), [(0, 10, 16), (1, 21, 40), (2, 51, 62), (3, 101, 140)])
@pytest.mark.parametrize("source", ["[1, 2, 3]", "'ab c'", "(1, 2, 3)", "{1, 2}", "{'a': 1}", "b'ab'"])
def test_long_values(source: str, size: int, low: int, high: int) -> None:
    found = made("long", source, size=size, count=8)
    assert all(low <= len(value) <= high for value in found)
    assert all(type(value) is type(ast.literal_eval(source)) for value in found)


def test_deep_lists_are_deeper_than_the_example() -> None:
    def depth(value: Any) -> int:
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    assert min(map(depth, made("deep", "[[1], 2]"))) >= 4
    assert ("deep", ()) not in kinds("[1, 2]")


def test_rows_of_a_table_and_fields_of_a_record_keep_their_length() -> None:
    assert ("empty", ()) in kinds("[[1, 2], [3, 4]]")
    assert ("empty", ("item",)) not in kinds("[[1, 2], [3, 4]]")
    assert ("empty", ("item",)) in kinds("[[1, 2], [3]]")
    record = kinds("[('a', 1), ('b', 2)]")
    assert ("empty", ("item",)) not in record
    assert {("empty", ("item", 0)), ("negative", ("item", 1))} <= record


def test_numbers_inside_an_expression_stay_small() -> None:
    edges = edges_of(Examples([Call(("range(5)",)), Call(("7",))]))
    sizes = {
        start: {edge.size for edge in edges if edge.kind == "large" and edge.path == (start,)}
        for start in (0, -1)
    }
    assert sizes == {0: {0, 1, 2, 3}, -1: {0}}


def test_other_sequences_only_where_the_type_hint_allows_them() -> None:
    for hint, allowed in (("", True), (": Sequence[int]", True), (": list[int]", False), (": 'list'", False)):
        signature = signature_of(f"def f(a{hint}):\n    return a", "f")
        assert (("other sequence", ()) in kinds("[1]", signature=signature)) is allowed, hint


def test_very_large_integers_only_without_floats() -> None:
    for body, largest in (("a / 2", 2), ("a // 2", 3), ("math.sqrt(a)", 2), ("a * 0.5", 2)):
        signature = signature_of(f"def f(a):\n    return {body}", "f")
        edges = edges_of(Examples([Call(("7",))], signature))
        assert max(edge.size for edge in edges if edge.kind == "large") == largest, body


def test_optional_parameters_that_no_example_passes() -> None:
    source = "def f(a, b=False, c=2, *, d=None, e='x'):\n    return a"
    examples = Examples([Call(("1",)), Call(("1",), {"e": "'y'"})], signature_of(source, "f"))
    options = [edge for edge in edges_of(examples) if edge.kind == "option"]
    calls = [edge_call(edge, 0, examples, random.Random(0), vary=False) for edge in options]
    assert [dict(call.kwargs) for call in calls if call] == [
        {"b": "True"},
        *({"c": value} for value in "340"),
        *({"d": value} for value in ("1", "2", "'a'")),
    ]


def test_arguments_of_one_type_are_long_together() -> None:
    examples = Examples([Call(("[1, 2]", "[3, 4]"))])
    edge = Edge("long", (0, 1), (0,), "list", 2)
    assert edge in edges_of(examples)
    call = edge_call(edge, 0, examples, random.Random(3), vary=False)
    assert call is not None
    one, other = map(ast.literal_eval, call.args)
    assert len(one) == len(other) > 50


def test_functions_and_endless_iterators_have_no_edges() -> None:
    assert edges_of(Examples([Call(("len",)), Call(("lambda x: x > 2",))])) == []
    assert edges_of(Examples([Call(("itertools.count(1)", "3"))])) == []
    assert edges_of(Examples([])) == []


def test_the_signature_of_a_method_has_no_self() -> None:
    source = "class A:\n    def f(self, a: int, b=1):\n        return a"
    signature = signature_of(source, "A.f")
    assert (signature.names, signature.hints, signature.defaults) == (("a", "b"), {"a": "int"}, {"b": "1"})
    assert signature_of(source, "A.g").names == ()
    assert signature_of("def f(", "f") == Signature()
