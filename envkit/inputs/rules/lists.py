"""Rules of one list argument: how long, in which order, of which items."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from envkit.inputs.rules.rule import (
    HINTED,
    UNASKED,
    ArgKey,
    Arguments,
    Rule,
    cells,
    fitted,
    is_list,
    known_by,
)

_DISTINCT = re.compile(r"\b(?:distinct|unique|different|no duplicate|permutation|strictly)", re.IGNORECASE)
_ORDERED = re.compile(r"sorted|ascending|descending|increasing|decreasing|in order", re.IGNORECASE)
_EVEN = re.compile(r"\beven length|length is even|\bn is (?:always )?even", re.IGNORECASE)
_LENGTH = re.compile(r"\b(?:length|size) (\d{1,4})\b", re.IGNORECASE)
_DIGITS = re.compile(r"\bdigits?\b", re.IGNORECASE)
#: As many small numbers of few kinds are taken for a code, such as 0 for free and 2 for a wall.
_MANY, _CODES = 8, ({0, 1, 2}, {-1, 0, 1})

Items = list[Any]


def number_rules(place: ArgKey, seen: Sequence[Any]) -> Iterator[Rule]:
    """Candidates for an argument that is a number, or lists of numbers."""
    known = [cell for value in seen for cell in cells(value)]
    for lowest in (1, 0):
        yield Rule(f"{place} >= {lowest}", lambda a, lowest=lowest: all(c >= lowest for c in cells(a[place])))
    for codes in _CODES:
        if len(known) >= _MANY:
            yield Rule(f"codes: {place}", lambda a, codes=codes: all(c in codes for c in cells(a[place])))


def list_rules(place: ArgKey, seen: Sequence[Any], said: str) -> Iterator[Rule]:
    """Candidates for an argument that is a list.

    Args:
        place: of the argument.
        seen: its values in the examples.
        said: what the task says in words.
    """
    yield Rule(f"not empty: {place}", lambda arguments: len(arguments[place]) > 0)
    if _EVEN.search(said):
        yield _even(place)
    length = len(seen[0])
    if length > 2 and ({*map(int, _LENGTH.findall(said))} >= {length} or len({*map(known_by, seen)}) > 2):
        yield _fixed_length(place, length)
    yield from _order_rules(place, seen, said)
    if _DIGITS.search(said):
        yield Rule(f"digits: {place}", lambda arguments: all(item in range(10) for item in arguments[place]))


def same_items(place: ArgKey, seen: Sequence[Any]) -> Rule | None:
    """That an argument has the items of the examples in another order; ``None`` where they do not."""
    base = list(seen[0])
    known = sorted(base, key=known_by)
    if len(base) < 3 or all(value == seen[0] for value in seen):
        return None

    def holds(arguments: Arguments) -> bool:
        return sorted(arguments[place], key=known_by) == known

    def mend(arguments: Arguments, rng: random.Random) -> None:
        mixed = rng.sample(base, len(base))
        arguments[place] = "".join(mixed) if isinstance(seen[0], str) else mixed

    return Rule(f"the same items: {place}", holds, mend) if all(holds({place: v}) for v in seen) else None


def ordered(place: ArgKey, name: str, arrange: Callable[[Items], Items]) -> Rule:
    """That a list is as ``arrange`` would leave it."""

    def mend(arguments: Arguments, rng: random.Random) -> None:
        arguments[place] = type(arguments[place])(arrange(list(arguments[place])))

    return Rule(f"{name}: {place}", lambda a: list(a[place]) == arrange(list(a[place])), mend)


def once(items: Items) -> Items:
    """The items without repetition, in order."""
    return [item for index, item in enumerate(items) if item not in items[:index]]


def orders() -> Iterator[tuple[str, Callable[[Items], Items]]]:
    """Orders that lists may be in, the strictest first."""
    for name, down in (("ascending", False), ("descending", True)):
        yield f"strictly {name}", lambda items, down=down: sorted(once(items), reverse=down)
        yield name, lambda items, down=down: sorted(items, reverse=down)


def in_order_by_chance(lists: Sequence[Any], said: str) -> bool:
    """Whether lists could well be in order by chance: had their items been shuffled."""
    chance = 1.0
    for value in lists:
        counts = Counter(map(known_by, value))
        chance *= math.prod(map(math.factorial, counts.values())) / math.factorial(min(len(value), 100))
    return chance >= (HINTED if _ORDERED.search(said) else UNASKED)


def _distinct_by_chance(seen: Sequence[Any]) -> bool:
    """Whether lists could well be free of repetition by chance, if drawn from the range of their integers."""
    chance = 1.0
    for value in seen:
        if not all(type(item) is int for item in value):
            return True
        span = max(value, default=0) - min(value, default=0) + 1
        for index in range(len(value)):
            chance *= max(0, span - index) / span
    return chance >= UNASKED


def _order_rules(place: ArgKey, seen: Sequence[Any], said: str) -> Iterator[Rule]:
    if rule := same_items(place, seen):
        yield rule
        return
    if not in_order_by_chance(seen, said):
        yield from (ordered(place, name, arrange) for name, arrange in orders())
        if all(is_list(item) and item for value in seen for item in value):
            yield ordered(place, "by the first", lambda items: sorted(items, key=lambda item: item[0]))
    if _DISTINCT.search(said) or not _distinct_by_chance(seen):
        yield ordered(place, "distinct", once)


def _fixed_length(place: ArgKey, length: int) -> Rule:
    def mend(arguments: Arguments, rng: random.Random) -> None:
        arguments[place] = fitted(arguments[place], length, arguments[place], rng)

    return Rule(f"{length} items: {place}", lambda arguments: len(arguments[place]) == length, mend)


def _even(place: ArgKey) -> Rule:
    def mend(arguments: Arguments, rng: random.Random) -> None:
        items = arguments[place]
        arguments[place] = fitted(items, len(items) + 1, items, rng)

    return Rule(f"even length: {place}", lambda arguments: len(arguments[place]) % 2 == 0, mend)
