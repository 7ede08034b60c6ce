"""A rule that arguments must follow, and helpers for all kinds of rules."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

#: Name of an argument, or its index if the name is not known.
ArgKey: TypeAlias = int | str
#: Value of each argument.
Arguments: TypeAlias = dict[ArgKey, Any]
Holds: TypeAlias = Callable[[Arguments], bool]
Fix: TypeAlias = Callable[[Arguments, random.Random], None]

#: A rule that holds for all examples is dropped if chance alone explains it with more than this probability:
#: without and with a hint in the problem statement.
MAX_CHANCE, MAX_CHANCE_HINTED = 0.02, 0.6


@dataclass(frozen=True, slots=True)
class Rule:
    """A precondition of a function's arguments.

    Args:
        name: for people, such as ``len(speed) == len(efficiency)``.
        holds: returns True if arguments follow the rule; may raise for arguments of another type.
        fix: changes arguments in place so that they follow the rule; ``None`` if only another draw helps.
    """

    name: str
    holds: Holds
    fix: Fix | None = None


def follows(rule: Rule, arguments: Arguments) -> bool:
    """True if arguments follow a rule; False for arguments of another type."""
    try:
        return rule.holds(arguments)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError):
        return False


def is_list(value: object) -> bool:
    """True for a list or a tuple."""
    return isinstance(value, list | tuple)


def cells(value: Any) -> list[Any]:
    """The leaves of nested lists. A value that is not a list is its own leaf."""
    if not is_list(value):
        return [value]
    return [cell for item in cast("Sequence[Any]", value) for cell in cells(item)]


def map_cells(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply ``change`` to every leaf of nested lists."""
    if not is_list(value):
        return change(value)
    items = [map_cells(item, change) for item in cast("Sequence[Any]", value)]
    return items if isinstance(value, list) else tuple(items)


def fit_length(row: Any, length: int, stock: Sequence[Any], rng: random.Random) -> Any:
    """Cut a sequence to a length, or extend it with random items from ``stock``."""
    more = [rng.choice(stock) for _ in range(length - len(row))] if stock else []
    if isinstance(row, str):
        return row[:length] + "".join(more)
    return type(row)([*row[:length], *more])


def sort_key(value: Any) -> str:
    """A key to sort and compare values that may have no order of their own."""
    return repr(value)
