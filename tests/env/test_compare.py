"""Strict comparison of encoded answers."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envkit.env.compare import NumericPolicy, canonical, equal, opaque, order, show
from envkit.sandbox.programs.worker import Unencodable, encode

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
)
hashable = st.recursive(
    scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4
)
values = st.recursive(
    scalars | st.sets(hashable, max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hashable, inner, max_size=3),
    max_leaves=8,
)
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["t", "v"]) | st.text(), inner, max_size=3)
        | st.fixed_dictionaries(
            {"t": st.sampled_from(["int", "float", "tuple", "bytes", "dict", "set"]), "v": inner}
        )
    ),
    max_leaves=10,
)


@given(values)
def test_every_value_equals_itself(value: Any) -> None:
    assert equal(encode(value), encode(value))


@given(values, json_like)
def test_values_of_any_shape_can_be_compared_and_shown(value: Any, hostile: Any) -> None:
    assert equal(encode(value), hostile) in (True, False)
    assert isinstance(show(hostile), str)
    assert opaque(hostile) in (True, False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (0, False),
        (2, 2.0),
        (0.0, False),
        ("1", 1),
        ([1], (1,)),
        ((1,), [1]),
        ({1}, frozenset({1})),
        ([], None),
        ({}, []),
        ({}, OrderedDict()),
        (Counter("a"), {"a": 1}),
        (b"a", "a"),
        (b"a", bytearray(b"a")),
        (2**60, float(2**60)),
        (Decimal(1), Fraction(1)),
        (range(3), [0, 1, 2]),
        (iter([1]), [1]),
        (deque([1]), [1]),
        (float("nan"), 1.0),
        (float("inf"), float("-inf")),
        ([1, 2], [2, 1]),
        ([1, 2], [1, 2, 3]),
        ({"a": 1}, {"a": 2}),
        (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)),
        (b"\0" * 20_000, b"\0" * 19_999 + b"\1"),
        pytest.param(1 << 99_999, (1 << 99_999) + 1, id="large integers"),
    ],
)
def test_different_values_are_different(one: Any, other: Any) -> None:
    assert not equal(encode(one), encode(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.1 + 0.2, 0.3),
        (float("nan"), float("nan")),
        ({1, 2, 3}, {3, 2, 1}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (defaultdict(int, a=1), defaultdict(str, a=1)),
        ((x for x in "ab"), iter("ab")),
        (2**70, 2**70),
        ([[1, (2.0, None)]], [[1, (2.0, None)]]),
    ],
)
def test_equal_values_are_equal(one: Any, other: Any) -> None:
    assert equal(encode(one), encode(other))


def test_a_policy_can_accept_integers_as_floats() -> None:
    lenient = NumericPolicy(int_as_float=True)
    assert equal(encode(2.0), encode(2), lenient)
    assert equal(encode([2]), encode([2.0]), lenient)
    assert not equal(encode(2), encode(2.5), lenient)
    assert not equal(encode(1), encode(True), lenient)
    assert not equal(encode(1.0), encode(10**400), lenient)


def test_the_tolerance_applies_inside_sets() -> None:
    near, far = {9.9999999999, 5.0}, {9.9, 5.0}
    assert equal(encode({10.0, 5.0}), encode(near), NumericPolicy())  # sorted as text, 9.99 would come last
    assert not equal(encode({10.0, 5.0}), encode(far), NumericPolicy())
    assert not equal(encode({10.0, 5.0}), encode(frozenset(near)), NumericPolicy())


def test_a_policy_sets_the_tolerance() -> None:
    assert not equal(encode(1.0), encode(1.001))
    assert equal(encode(1.0), encode(1.001), NumericPolicy(rel_tol=1e-2))
    assert not equal(encode(0.1 + 0.2), encode(0.3), NumericPolicy(rel_tol=0, abs_tol=0))


class EqualToAll(int):
    """Claims to equal everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize("value", [EqualToAll(3), [EqualToAll(3)], object(), {"a": object()}, int])
def test_a_value_that_is_not_plain_data_equals_nothing(value: Any) -> None:
    assert opaque(encode(value))
    assert not equal(encode(value), encode(value))
    assert not equal(encode(3), encode(value))


def test_an_endless_iterator_is_truncated() -> None:
    import itertools

    coded = encode(itertools.count())
    assert len(coded["v"]) == 65
    assert equal(coded, encode(itertools.count()))
    assert not equal(coded, encode(iter(range(64))))


@pytest.mark.parametrize(
    "value",
    ["x" * 100_001, list(range(10_001)), b"x" * 60_000, 1 << 500_000],
    ids=["text", "list", "bytes", "integer"],
)
def test_too_large_values_are_refused_and_not_truncated(value: Any) -> None:
    with pytest.raises(Unencodable):
        encode(value)


def test_too_deeply_nested_values_are_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(Unencodable):
        encode(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.5"),
        ((1,), "(1,)"),
        ({1: "a"}, "{1: 'a'}"),
        ({3}, "{3}"),
        (set(), "set([])"),
        (b"ab", "b'ab'"),
        (bytearray(b"ab"), "bytearray(b'ab')"),
        (Fraction(1, 2), "Fraction(1/2)"),
        (iter("ab"), "iterator(['a', 'b'])"),
        (Counter("aa"), "Counter({'a': 2})"),
        (range(3), "range(0, 3)"),
    ],
)
def test_values_are_shown_as_source(value: Any, text: str) -> None:
    assert show(encode(value)) == text


def test_show_truncates_and_never_raises() -> None:
    assert show("x" * 500, 20) == "'" + "x" * 16 + "..."
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    for hostile in (deep, {"t": "bytes", "v": "zz"}, {"t": "dict", "v": [1]}, {"t": ["x"], "v": {}}):
        assert isinstance(show(hostile), str)


def test_integers_too_large_for_a_float_can_be_ordered() -> None:
    rows = [[10**400], [None], [3], [-(10**400)], [{"t": "float", "v": "2.5"}]]
    assert sorted(rows, key=order) == [[-(10**400)], [{"t": "float", "v": "2.5"}], [3], [10**400], [None]]


def test_rows_with_equal_numbers_are_ordered_by_their_next_item() -> None:
    one = [encode([2, "b"]), encode([2.0, "a"]), encode([float("nan"), "c"])]
    other = [encode([2.0, "b"]), encode([float("nan"), "c"]), encode([2, "a"])]
    left, right = sorted(one, key=order), sorted(other, key=order)
    assert [row[1] for row in left] == [row[1] for row in right] == ["c", "a", "b"]


def test_canonical_json_sorts_keys() -> None:
    assert canonical({"b": 1, "a": [1, "é"]}) == '{"a":[1,"\\u00e9"],"b":1}'
