"""Converting dataclasses to plain data and back; wrong data is named by its path."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from envkit.runtime.plain import decode, encode


@dataclass(frozen=True)
class Inner:
    name: str
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...] = ()
    maybe: Inner | None = None
    count: int | None = None
    words: Mapping[str, int] = field(default_factory=dict[str, int])
    perhaps: tuple[str, ...] | None = None


def test_data_survives_encode_and_decode() -> None:
    data = Outer(Inner("a", math.nan), (Inner("b"),), Inner("c"), 3, {"x": 1}, ("y",))
    back = decode(Outer, encode(data), "it")
    assert math.isnan(back.inner.share)
    assert encode(back) == encode(data)
    assert decode(Outer, {"inner": {"name": "a", "share": 1}}, "it") == Outer(Inner("a", 1.0))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "it lacks the field 'inner'"),
        ({"inner": {"name": 1}}, "it.inner.name is 1; expected str"),
        ({"inner": {"name": "a"}, "more": 1}, "it has the unknown field 'more'"),
        ({"inner": {"name": "a"}, "many": [{"name": "a"}, {}]}, r"it.many\[1\] lacks the field 'name'"),
        ({"inner": {"name": "a"}, "count": True}, "it.count is True"),
        ({"inner": {"name": "a"}, "maybe": "x"}, "it.maybe is 'x'"),
        ({"inner": {"name": "a"}, "maybe": {"name": None}}, "it.maybe.name is None"),
        ({"inner": {"name": "a"}, "words": {"x": 1.5}}, "it.words.x is 1.5"),
        ({"inner": {"name": "a"}, "many": "x"}, "it.many is 'x'; expected a list"),
        ({"inner": {"name": "a"}, "words": 1}, "it.words is 1; expected a table"),
        ({"inner": {"name": "a"}, "perhaps": ["x", 1]}, r"it.perhaps\[1\] is 1; expected str"),
        ([], r"it is \[\]; expected Outer"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        decode(Outer, value, "it")
