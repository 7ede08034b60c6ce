"""Infer the shape of example values; draw new values of that shape."""

from __future__ import annotations

import math
import random
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

#: Longest row that may be a record, whose positions differ in meaning, such as ``[start, end]``.
_MAX_RECORD = 4
#: Longest sequence and string to draw if the examples are shorter. Programs of exponential cost still end.
_MAX_ITEMS, _MAX_TEXT = 40, 60
_CLASSES = (string.ascii_lowercase, string.ascii_uppercase, string.digits)


@dataclass(frozen=True, slots=True)
class Number:
    """Integers or floats.

    Args:
        values: example values, not empty.
        lowest: lower bound, 0 or 1; ``None`` if there are negative values.
        flags: all are 0 or 1, in enough examples to rule out chance.
        floats: all are floats.
    """

    values: tuple[float, ...]
    lowest: int | None
    flags: bool
    floats: bool

    @property
    def highest(self) -> int:
        """Largest magnitude of an example, at least 1."""
        return max(1, *(int(abs(value)) for value in self.values))


@dataclass(frozen=True, slots=True)
class Text:
    """Strings over an alphabet.

    Args:
        values: example values, not empty.
        alphabet: their characters, sorted.
        formed: they have a format of several character classes, such as ``12:30``, that new values keep.
    """

    values: tuple[str, ...]
    alphabet: str
    formed: bool


@dataclass(frozen=True, slots=True)
class Items:
    """Sequences, sets or dicts of any length.

    Args:
        kind: ``list``, ``tuple``, ``set``, or ``dict``, whose items are records of key and value.
        item: shape of an item; ``None`` if all examples are empty.
        longest: largest number of items in an example.
    """

    kind: type
    item: Shape | None
    longest: int


@dataclass(frozen=True, slots=True)
class Record:
    """Sequences of one length; each position has its own shape."""

    kind: type
    parts: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the example values, for values without a better shape; not empty."""

    values: tuple[Any, ...]


Shape: TypeAlias = Number | Text | Items | Record | Choice


def shape_of(values: Sequence[Any], *, inside: bool = False) -> Shape:
    """The shape that all values have.

    Args:
        values: at least one.
        inside: True for items of a sequence, where short rows of one length are records.

    >>> shape_of([[[1, 5], [2, 9]], [[0, 3]]]).item.kind
    <class 'list'>
    """
    kinds: set[type] = {type(value) for value in values}
    if kinds <= {int, float} and all(type(value) is int or math.isfinite(value) for value in values):
        return _number(values)
    if kinds == {bool}:
        return Choice((False, True))
    if len(kinds) != 1:
        return Choice(tuple(values))
    [kind] = kinds
    if kind is str:
        alphabet = _alphabet(values)
        classes = {*form("".join(values)).lower()}
        formed = len(classes) > 1 and not classes.isdisjoint("a0")
        return Text(tuple(values), alphabet, formed)
    if kind is dict:
        pairs: list[Any] = [pair for value in values for pair in value.items()]
        longest = max(len(value) for value in values)
        return Items(dict, shape_of(pairs, inside=True) if pairs else None, longest)
    if kind in (list, tuple):
        lengths = {len(value) for value in values}
        kinds_in: list[set[type]] = [{type(item) for item in value} for value in values]
        mixed = any(len(some) > 1 for some in kinds_in)
        short = inside and len(values) > 1 and max(lengths) <= _MAX_RECORD
        if len(lengths) == 1 and 0 not in lengths and (mixed or short or (inside and kind is tuple)):
            return Record(kind, tuple(shape_of(column) for column in zip(*values, strict=True)))
    if kind in (list, tuple, set):
        items = [item for value in values for item in _listed(value, kind)]
        return Items(kind, shape_of(items, inside=True) if items else None, max(map(len, values)))
    return Choice(tuple(values))


def _alphabet(texts: Sequence[str]) -> str:
    """Characters of the examples; all ten digits if several digits with a large one occur."""
    seen = set("".join(texts))
    digits = seen & {*string.digits}
    return "".join(sorted(seen | ({*string.digits} if len(digits) > 3 and max(digits) > "4" else set())))


def form(text: str) -> str:
    """Format of a string: each run of lowercase, uppercase or digits becomes one character.

    >>> form("1/3+12/7"), form("ab cd")
    ('0/0+0/0', 'a a')
    """
    return re.sub(r"[a-z]+", "a", re.sub(r"[A-Z]+", "A", re.sub(r"[0-9]+", "0", text)))


def _number(values: Sequence[float]) -> Number:
    lowest = next((bound for bound in (1, 0) if min(values) >= bound), None)
    flags = len(values) > 3 and {*values} == {0, 1}
    return Number(tuple(values), lowest, flags, all(type(value) is float for value in values))


def sample(shape: Shape, rng: random.Random, size: int) -> Any:
    """Draw a new value.

    Args:
        shape: shape of the value.
        rng: source of all draws.
        size: 0 for short values with few different parts, 1 for up to the examples' length, 2 for longer.
    """
    match shape:
        case Number():
            new = _sample_number(shape, rng, size)
            return new + rng.choice((0.0, 0.0, 0.25, 0.5)) if shape.floats else new
        case Text():
            length = _length(rng, max(map(len, shape.values)), size, _MAX_TEXT)
            letters = shape.alphabet or "a"
            if shape.formed:
                return _refilled(rng.choice(shape.values), letters, rng, size)
            if size == 0 or rng.random() < 0.3:
                letters = rng.sample(letters, min(len(letters), rng.randint(1, 3)))
            return "".join(rng.choice(letters) for _ in range(length))
        case Items():
            if shape.item is None:
                return shape.kind()
            length = _length(rng, shape.longest, size, _MAX_ITEMS)
            # Repeated items reveal wrong orders and counts. Simple items are edge cases.
            few = size == 0 or rng.random() < 0.3
            plain = 0 if few and rng.random() < 0.5 else size
            stock = [sample(shape.item, rng, plain) for _ in range(rng.randint(1, 4) if few else length)]
            return _build(shape.kind, [rng.choice(stock) for _ in range(length)] if few else stock)
        case Record():
            return shape.kind(sample(part, rng, size) for part in shape.parts)
        case Choice():
            return rng.choice(shape.values)


def vary(shape: Shape, value: Any, rng: random.Random) -> Any:
    """Make a small variation of ``value``, which has this shape."""
    match shape:
        case Number():
            return _vary_number(shape, value, rng)
        case Text():
            return _vary_text(shape, value, rng)
        case Items():
            return _build(shape.kind, _vary_items(shape, _listed(value, shape.kind), rng))
        case Record():
            at = rng.randrange(len(shape.parts))
            parts = [vary(part, one, rng) if index == at else one
                     for index, (part, one) in enumerate(zip(shape.parts, value, strict=True))]  # fmt: skip
            return shape.kind(parts)
        case Choice():
            return rng.choice(shape.values)


def _listed(value: Any, kind: type) -> list[Any]:
    """The items of a collection in an order that is independent of hashes."""
    return list(value.items()) if kind is dict else sorted(value, key=repr) if kind is set else list(value)


def _build(kind: type, items: list[Any]) -> Any:
    return kind(items)


def _length(rng: random.Random, seen: int, size: int, limit: int) -> int:
    """Draw the length of a sequence; examples longer than ``limit`` are not exceeded.

    Args:
        rng: source of the draw.
        seen: longest example.
        size: see `sample`.
        limit: longest sequence to make that is longer than the examples.
    """
    if size == 0:
        return rng.randint(0, min(5, max(seen, 2)))
    if size == 1:
        return rng.randint(1, max(2, seen))
    return rng.randint(min(seen, limit), min(limit, 2 * seen + 8))


def _sample_number(shape: Number, rng: random.Random, size: int) -> float:
    if shape.flags:
        return rng.randint(0, 1)
    low = 0 if shape.lowest is None else shape.lowest
    if size == 0:
        return rng.randint(-2 if shape.lowest is None else low, low + 3)
    if rng.random() < 0.2:
        return rng.choice(shape.values)
    high = shape.highest + 2 if size == 1 else 4 * min(shape.highest, 10**6) + 10
    return rng.randint(-high if shape.lowest is None else low, high)


def _vary_number(shape: Number, value: float, rng: random.Random) -> float:
    if shape.flags:
        return 1 - value
    ways = [value + rng.choice((-2, -1, 1, 2, 3)), value + rng.choice((-1, 1)), rng.choice(shape.values)]
    ways += [sample(shape, rng, 0), sample(shape, rng, 1)]
    if isinstance(value, float):
        ways += [value + rng.choice((-0.5, 0.25, 0.5)), value * 2]
    if shape.lowest is None:
        ways.append(-value)
    new = rng.choice(ways)
    return new if shape.lowest is None or new >= shape.lowest else type(value)(shape.lowest)


def _vary_text(shape: Text, text: str, rng: random.Random) -> str:
    alphabet = shape.alphabet or "a"
    at = rng.randrange(len(text) + 1)
    new = rng.choice(alphabet)
    like = rng.choice(_like(text[at : at + 1], alphabet))
    return rng.choice(
        [
            text[:at] + like + text[at + 1 :],
            text[:at] + like + text[at + 1 :],
            text[:at] + new + text[at:],
            text[:at] + text[at + 1 :],
            text[:at] + text[max(0, at - 2) : at] + text[at:],
            text[: max(1, at)],
            text[at:] + text[:at],
            text[::-1],
            "".join(rng.sample(text, len(text))),
            rng.choice(shape.values),
        ]
    )


def _refilled(text: str, alphabet: str, rng: random.Random, size: int) -> str:
    """A string of the same format with new runs of letters and digits."""

    def run(found: re.Match[str]) -> str:
        letters = _like(found[0][0], alphabet)
        few = rng.sample(letters, min(len(letters), 2 + 2 * size))
        return "".join(rng.choice(few) for _ in range(rng.randint(1, len(found[0]) + size)))

    return re.sub(r"[a-z]+|[A-Z]+|[0-9]+", run, text)


def _like(character: str, alphabet: str) -> str:
    """The characters of an alphabet in the class of ``character``; never empty."""
    classes = [known for known in _CLASSES if character and character in known]
    return "".join(one for one in alphabet if classes and one in classes[0]) or character or alphabet


def _vary_items(shape: Items, items: list[Any], rng: random.Random) -> list[Any]:
    if shape.item is None or not items:
        return [] if shape.item is None else [sample(shape.item, rng, 1)]
    at = rng.randrange(len(items))
    changed = vary(shape.item, items[at], rng)
    other = rng.randrange(len(items))
    swapped = list(items)
    swapped[at], swapped[other] = items[other], items[at]
    return rng.choice(
        [
            [*items[:at], changed, *items[at + 1 :]],
            [*items[:at], changed, *items[at + 1 :]],
            [vary(shape.item, item, rng) for item in items],
            [*items[:at], changed, *items[at:]],
            [*items[:at], sample(shape.item, rng, 1), *items[at:]],
            [*items[:at], items[other], *items[at:]],
            [*items[:at], items[other], *items[at + 1 :]],
            items[:at] + items[at + 1 :],
            items[: at + 1],
            items[at:],
            swapped,
            items[::-1],
            rng.sample(items, len(items)),
        ]
    )
