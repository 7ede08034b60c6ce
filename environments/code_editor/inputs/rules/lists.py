"""Rules for one list argument: length, order and items."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from envkit.environments.code_editor.inputs.rules.rule import (
    MAX_CHANCE,
    MAX_CHANCE_HINTED,
    ArgKey,
    Arguments,
    Rule,
    cells,
    fit_length,
    is_list,
    sort_key,
)

_DISTINCT = re.compile(r"\b(?:distinct|unique|different|no duplicate|permutation|strictly)", re.IGNORECASE)
_ORDERED = re.compile(r"sorted|ascending|descending|increasing|decreasing|in order", re.IGNORECASE)
_EVEN = re.compile(r"\beven length|length is even|\bn is (?:always )?even", re.IGNORECASE)
_LENGTH = re.compile(r"\b(?:length|size) (\d{1,4})\b", re.IGNORECASE)
_DIGITS = re.compile(r"\bdigits?\b", re.IGNORECASE)
#: At least this many numbers, all of one of these sets, count as codes, such as 0 for free and 2 for a wall.
_MANY, _CODES = 8, ({0, 1, 2}, {-1, 0, 1})

Items = list[Any]


def number_rules(key: ArgKey, seen: Sequence[Any]) -> Iterator[Rule]:
    """Candidate rules for a number, or for nested lists of numbers."""
    known = [cell for value in seen for cell in cells(value)]
    for lowest in (1, 0):
        yield Rule(f"{key} >= {lowest}", lambda a, lowest=lowest: all(c >= lowest for c in cells(a[key])))
    for codes in _CODES:
        if len(known) >= _MANY:
            yield Rule(f"codes: {key}", lambda a, codes=codes: all(c in codes for c in cells(a[key])))


def list_rules(key: ArgKey, seen: Sequence[Any], statement: str) -> Iterator[Rule]:
    """Candidate rules for a list.

    Args:
        key: the argument.
        seen: its values in the examples.
        statement: the problem in words.
    """
    yield Rule(f"not empty: {key}", lambda arguments: len(arguments[key]) > 0)
    if _EVEN.search(statement):
        yield _even(key)
    length = len(seen[0])
    if length > 2 and (
        {*map(int, _LENGTH.findall(statement))} >= {length} or len({*map(sort_key, seen)}) > 2
    ):
        yield _fixed_length(key, length)
    yield from _order_rules(key, seen, statement)
    if _DIGITS.search(statement):
        yield Rule(f"digits: {key}", lambda arguments: all(item in range(10) for item in arguments[key]))


def same_items(key: ArgKey, seen: Sequence[Any]) -> Rule | None:
    """The rule that all values have the same items in any order; ``None`` if the examples break it."""
    base = list(seen[0])
    known = sorted(base, key=sort_key)
    if len(base) < 3 or all(value == seen[0] for value in seen):
        return None

    def holds(arguments: Arguments) -> bool:
        return sorted(arguments[key], key=sort_key) == known

    def fix(arguments: Arguments, rng: random.Random) -> None:
        mixed = rng.sample(base, len(base))
        arguments[key] = "".join(mixed) if isinstance(seen[0], str) else mixed

    return Rule(f"the same items: {key}", holds, fix) if all(holds({key: v}) for v in seen) else None


def ordered(key: ArgKey, name: str, arrange: Callable[[Items], Items]) -> Rule:
    """The rule that ``arrange`` leaves a list unchanged."""

    def fix(arguments: Arguments, rng: random.Random) -> None:
        arguments[key] = type(arguments[key])(arrange(list(arguments[key])))

    return Rule(f"{name}: {key}", lambda a: list(a[key]) == arrange(list(a[key])), fix)


def without_repeats(items: Items) -> Items:
    """The items without repetitions, in order."""
    return [item for index, item in enumerate(items) if item not in items[:index]]


def orders() -> Iterator[tuple[str, Callable[[Items], Items]]]:
    """Orders of a list, by name; strict ones first."""
    for name, down in (("ascending", False), ("descending", True)):
        yield f"strictly {name}", lambda items, down=down: sorted(without_repeats(items), reverse=down)
        yield name, lambda items, down=down: sorted(items, reverse=down)


def in_order_by_chance(lists: Sequence[Any], statement: str) -> bool:
    """True if chance alone could explain that all these lists are sorted."""
    chance = 0.0  # its logarithm, because factorials of long lists are too large
    for value in lists:
        counts = Counter(map(sort_key, value))
        chance += sum(math.lgamma(count + 1) for count in counts.values()) - math.lgamma(len(value) + 1)
    return chance >= math.log(MAX_CHANCE_HINTED if _ORDERED.search(statement) else MAX_CHANCE)


def _distinct_by_chance(seen: Sequence[Any]) -> bool:
    """True if chance alone could explain that these lists of integers have no repeated item."""
    chance = 1.0
    for value in seen:
        if not all(type(item) is int for item in value):
            return True
        span = max(value, default=0) - min(value, default=0) + 1
        for index in range(len(value)):
            chance *= max(0, span - index) / span
    return chance >= MAX_CHANCE


def _order_rules(key: ArgKey, seen: Sequence[Any], statement: str) -> Iterator[Rule]:
    if rule := same_items(key, seen):
        yield rule
        return
    if not in_order_by_chance(seen, statement):
        yield from (ordered(key, name, arrange) for name, arrange in orders())
        if all(is_list(item) and item for value in seen for item in value):
            yield ordered(key, "by the first", lambda items: sorted(items, key=lambda item: item[0]))
    if _DISTINCT.search(statement) or not _distinct_by_chance(seen):
        yield ordered(key, "distinct", without_repeats)


def _fixed_length(key: ArgKey, length: int) -> Rule:
    def fix(arguments: Arguments, rng: random.Random) -> None:
        arguments[key] = fit_length(arguments[key], length, arguments[key], rng)

    return Rule(f"{length} items: {key}", lambda arguments: len(arguments[key]) == length, fix)


def _even(key: ArgKey) -> Rule:
    def fix(arguments: Arguments, rng: random.Random) -> None:
        items = arguments[key]
        arguments[key] = fit_length(items, len(items) + 1, items, rng)

    return Rule(f"even length: {key}", lambda arguments: len(arguments[key]) % 2 == 0, fix)
