"""Compare encoded answers on the host."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

from envkit.types import JSON

_MAPPINGS = ("dict", "Counter", "defaultdict", "OrderedDict")
#: See `order`: kind of value, size, text, and the ranks of its items.
_Rank: TypeAlias = "tuple[int, float, str, tuple[_Rank, ...]]"


@dataclass(frozen=True, slots=True)
class NumericPolicy:
    """Tolerance for equal numbers. NaN equals only NaN.

    Args:
        rel_tol: relative tolerance between floats, at least 0.
        abs_tol: absolute tolerance between floats, at least 0.
        int_as_float: accept ``2`` for ``2.0`` and the reverse. ``True`` is never a number.
    """

    rel_tol: float = 1e-9
    abs_tol: float = 1e-12
    int_as_float: bool = False

    def close(self, expected: float, actual: float) -> bool:
        """True if two floats are equal within the tolerances."""
        if math.isnan(expected) or math.isnan(actual):
            return math.isnan(expected) and math.isnan(actual)
        return math.isclose(expected, actual, rel_tol=self.rel_tol, abs_tol=self.abs_tol)


#: Floats may differ by rounding; everything else is exact.
STRICT = NumericPolicy()


@dataclass(frozen=True, slots=True)
class Leniency:
    """Accepted differences between two answers, apart from numbers.

    Args:
        any_order: levels of nested lists whose order is ignored: 0 for none, 1 for the outermost, and so on.
        repeats: count how often an item occurs in the outermost list whose order is ignored.
        sequences: accept tuples and lists for each other, as in JSON; sets too if their order is ignored.
        mappings: accept dicts, Counters, defaultdicts and OrderedDicts for each other, as ``==`` does.
        arguments: compare the arguments after the call as well. They are always compared if the value is
            ``None``.
    """

    any_order: int = 0
    repeats: bool = True
    sequences: bool = False
    mappings: bool = False
    arguments: bool = True


#: No differences are accepted.
EXACT = Leniency()


#: Types of values that are encoded as themselves.
_PLAIN = frozenset({int, str, bool, type(None)})


def _number(value: JSON) -> int | float | None:
    """The number that is encoded, or ``None``."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("v"), str):
        text = str(value["v"])
        try:
            if value.get("t") == "float":
                return float(text)
            if value.get("t") == "int":
                return int(text, 16)
        except ValueError:
            return None
    return None


def equal(expected: JSON, actual: JSON, policy: NumericPolicy = STRICT) -> bool:
    """True if an answer equals the expected one: exact types, floats within the policy.

    Both are encoded by `envkit.sandbox.programs.worker.encode`. ``actual`` may be hostile: any shape is
    allowed. An opaque value equals nothing.

    >>> equal(720, {"t": "float", "v": "720.0"}), equal(1, True), equal([1], {"t": "tuple", "v": [1]})
    (False, False, False)
    """
    if type(expected) is type(actual) and type(expected) in _PLAIN:  # nearly all values, and fast
        return expected == actual
    left, right = _number(expected), _number(actual)
    if left is not None or right is not None:
        if left is None or right is None:
            return False
        if type(left) is not type(right) and not policy.int_as_float:
            return False
        if isinstance(left, int) and isinstance(right, int):
            return left == right
        try:
            left, right = float(left), float(right)
        except OverflowError:
            return False
        return policy.close(left, right)
    if isinstance(expected, Mapping):
        if not isinstance(actual, Mapping) or expected.get("t") == "opaque":
            return False
        kind, wanted, found = expected.get("t"), expected.get("v"), actual.get("v")
        if not isinstance(actual.get("t"), str) or kind != actual.get("t"):
            return False
        if kind == "complex":
            return _equal_complex(str(wanted), str(found), policy)
        if kind in ("set", "frozenset") and _has_items(wanted) and _has_items(found):
            wanted, found = sorted(wanted, key=order), sorted(found, key=order)
        return equal(wanted, found, policy)
    if _has_items(expected):
        return (
            _has_items(actual)
            and len(expected) == len(actual)
            and all(equal(one, other, policy) for one, other in zip(expected, actual, strict=True))
        )
    return type(expected) is type(actual) and expected == actual


def _equal_complex(expected: str, actual: str, policy: NumericPolicy) -> bool:
    try:
        left, right = complex(expected), complex(actual)
    except ValueError:
        return False
    return policy.close(left.real, right.real) and policy.close(left.imag, right.imag)


def _has_items(value: JSON) -> TypeGuard[Sequence[JSON]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def order(value: JSON) -> tuple[_Rank, str]:
    """Sort key of encoded values; nearly equal numbers become neighbours.

    Numbers come first, by size and regardless of type, with NaN before all. Other scalars follow, by their
    text, then collections, item by item. Numbers too large for a float are ordered by their digits.

    >>> sorted([10, {"t": "float", "v": "9.5"}, "a", [2], [1, 2]], key=order)
    [{'t': 'float', 'v': '9.5'}, 10, 'a', [1, 2], [2]]

    Raises:
        RecursionError: a hostile value that is nested too deeply.
    """
    return _rank(value), canonical(value)  # the text distinguishes 1 from 1.0


def _rank(value: JSON) -> _Rank:
    number = _number(value)
    if number is not None:
        try:
            size = float(number)
        except OverflowError:
            return 0, math.inf if number > 0 else -math.inf, canonical(value), ()
        return 0, -math.inf if math.isnan(size) else size, "", ()
    kind, items = (str(value.get("t")), value.get("v")) if isinstance(value, Mapping) else ("", value)
    if _has_items(items):
        return 2, 0.0, kind, tuple(map(_rank, items))
    return 1, 0.0, canonical(value), ()


def relaxed(value: JSON, leniency: Leniency) -> JSON:
    """A common form of all encoded values that ``leniency`` accepts for each other.

    >>> relaxed({"t": "tuple", "v": [3, 1, 2]}, Leniency(any_order=1, sequences=True))
    [1, 2, 3]

    Raises:
        RecursionError: a hostile value that is nested too deeply.
    """
    return _relaxed(value, leniency, leniency.any_order)


def _relaxed(value: JSON, leniency: Leniency, depth: int) -> JSON:
    if isinstance(value, Mapping):
        kind, inner = value.get("t"), value.get("v")
        if kind in _MAPPINGS and _has_items(inner):
            pairs = [_relaxed_pair(pair, leniency) for pair in inner]
            return (
                {"t": "dict", "v": sorted(pairs, key=order)} if leniency.mappings else {"t": kind, "v": pairs}
            )
        if not leniency.sequences or (kind != "tuple" and not (kind == "set" and depth > 0)):
            if kind not in ("tuple", "iterator", "deque") or not _has_items(inner):
                return value
            return {"t": kind, "v": _relaxed(inner, leniency, depth)}
        value = inner
    if not _has_items(value):
        return value
    items = [_relaxed(item, leniency, depth - 1) for item in value]
    if depth <= 0:
        return items
    items.sort(key=order)
    if leniency.repeats or depth < leniency.any_order:
        return items
    return [item for item, _ in itertools.groupby(items, canonical)]


def _relaxed_pair(pair: JSON, leniency: Leniency) -> JSON:
    """The common form of an entry of a mapping. The order of items is free at the top only."""
    if not _has_items(pair) or len(pair) != 2:  # a candidate's process may write anything
        return pair
    return [pair[0], _relaxed(pair[1], leniency, 0)]


def opaque(value: JSON) -> bool:
    """True if an encoded value has a part of an unknown type, which cannot be compared."""
    if type(value) in _PLAIN:
        return False
    if isinstance(value, Mapping):
        return value.get("t") == "opaque" or opaque(value.get("v"))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return any(opaque(item) for item in value)
    return False


def show(value: JSON, limit: int = 120) -> str:
    """An encoded value as Python source for people and agents, at most ``limit`` characters.

    >>> show({"t": "tuple", "v": [1, {"t": "float", "v": "2.5"}, "a"]})
    "(1, 2.5, 'a')"
    """
    try:
        text = _source(value)
    except (RecursionError, ValueError):  # a candidate may send any shape
        text = "a malformed value"
    return printable(text if len(text) <= limit else text[: limit - 3] + "...")


def printable(text: str) -> str:
    r"""Text with escapes for lone surrogates, which a candidate may send and no terminal can print.

    >>> printable("a\ud800")
    'a\\ud800'
    """
    return text.encode(errors="backslashreplace").decode()


def _source(value: JSON) -> str:
    if isinstance(value, Mapping):
        kind, inner = value.get("t"), value.get("v")
        items = list(inner) if isinstance(inner, Sequence) and not isinstance(inner, str) else []
        if kind in ("float", "complex", "range", "int"):
            return str(inner)
        if kind == "tuple":
            return "(" + ", ".join(map(_source, items)) + ("," if len(items) == 1 else "") + ")"
        if kind == "set" and items:
            return "{" + ", ".join(map(_source, items)) + "}"
        if kind == "dict":
            return "{" + ", ".join(_pair(item) for item in items) + "}"
        if kind in ("bytes", "bytearray"):
            data = bytes.fromhex(str(inner))
            return repr(data if kind == "bytes" else bytearray(data))
        if kind == "more":
            return "..."
        if kind in ("iterator", "frozenset", "deque", "set"):
            return f"{kind}([{', '.join(map(_source, items))}])"
        if items:
            return f"{kind}({{{', '.join(_pair(item) for item in items)}}})"
        return f"{kind}({inner})"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_source, value)) + "]"
    return repr(value)


def _pair(item: JSON) -> str:
    if isinstance(item, Sequence) and len(item) == 2:
        return f"{_source(item[0])}: {_source(item[1])}"
    return _source(item)


def canonical(value: JSON) -> str:
    """One line of JSON with sorted keys, for digests and reproducible files."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
