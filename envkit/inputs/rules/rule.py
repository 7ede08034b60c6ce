"""A rule that arguments keep to, and what all kinds of rules share."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

#: Name or place of an argument.
ArgKey: TypeAlias = int | str
#: An argument's place -> its value.
Arguments: TypeAlias = dict[ArgKey, Any]
Holds: TypeAlias = Callable[[Arguments], bool]
Mend: TypeAlias = Callable[[Arguments, random.Random], None]

#: How likely chance may make a rule hold that is believed all the same: unasked, and where words hint at it.
UNASKED, HINTED = 0.02, 0.6


@dataclass(frozen=True, slots=True)
class Rule:
    """Something that arguments keep to.

    Args:
        name: for people, such as ``len(speed) == len(efficiency)``.
        holds: whether arguments keep to it; may raise where they have another form.
        mend: changes arguments in place so that they may; ``None`` where only trying helps.
    """

    name: str
    holds: Holds
    mend: Mend | None = None


def keeps(rule: Rule, arguments: Arguments) -> bool:
    """Whether arguments keep to a rule; what has another form does not."""
    try:
        return rule.holds(arguments)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError):
        return False


def is_list(value: object) -> bool:
    """Whether a value is a list or a tuple."""
    return isinstance(value, list | tuple)


def cells(value: Any) -> list[Any]:
    """What lists in lists hold in the end; of anything else, the value alone."""
    if not is_list(value):
        return [value]
    return [cell for item in cast("Sequence[Any]", value) for cell in cells(item)]


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Lists in lists with every cell changed."""
    if not is_list(value):
        return change(value)
    items = [mapped(item, change) for item in cast("Sequence[Any]", value)]
    return items if isinstance(value, list) else tuple(items)


def fitted(row: Any, length: int, stock: Sequence[Any], rng: random.Random) -> Any:
    """A sequence cut, or filled up with items of the stock, to a length."""
    more = [rng.choice(stock) for _ in range(length - len(row))] if stock else []
    if isinstance(row, str):
        return row[:length] + "".join(more)
    return type(row)([*row[:length], *more])


def known_by(value: Any) -> str:
    """What values are sorted and compared by where they may have no order of their own."""
    return repr(value)
