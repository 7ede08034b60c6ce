"""How hard a mined task should be, from the task alone: an order to begin with, not a measured rate."""

from __future__ import annotations

import math
from typing import Final

from envkit.hidden import read_hidden
from envkit.mining.build import MAX_KILLERS
from envkit.mining.functions import functions
from envkit.mining.hidden import RepairHidden
from envkit.types import Task

#: From the slips that a line shows by itself to those that only what it does shows, or what is not there.
_VISIBLE: Final = (
    *("negation", "comparison", "boolean", "index", "arithmetic"),
    *("constant", "return", "arguments", "variable", "statement"),
)
#: Lines of a function beyond which its length says nothing more.
_LONG: Final = 64
#: What each part counts.
_QUIET, _LENGTH, _OPERATOR = 0.4, 0.35, 0.25


def difficulty(operator: str, lines: int, tells: int, asked: int) -> float:
    """A score in [0, 1], higher for harder.

    It grows with the share of calls or tests that do not notice the bug, with the function's length, and with
    how little the operator's slip shows on its line. `envkit.training.difficulty` measures a policy instead.

    Args:
        operator: one of `envkit.mining.mutations.OPERATORS`.
        lines: of the function, at least 1.
        tells: calls or tests that tell the bug from the original, at least 1.
        asked: calls or tests in all.

    >>> easy, hard = difficulty("negation", 3, 40, 40), difficulty("statement", 60, 1, 40)
    >>> round(easy, 2), round(hard, 2)
    (0.09, 0.98)
    """
    quiet = 1 - tells / max(asked, tells)
    length = min(1.0, math.log(max(lines, 1)) / math.log(_LONG))
    hidden = _VISIBLE.index(operator) / (len(_VISIBLE) - 1)
    return _QUIET * quiet + _LENGTH * length + _OPERATOR * hidden


def difficulty_of(task: Task) -> float:
    """`difficulty` of a task that a miner made.

    Of a task of calls only the first `envkit.mining.build.MAX_KILLERS` that tell are known: what few of them
    tell stands apart, and the rest does not.
    """
    said = task.metadata.get("difficulty")
    if isinstance(said, float):
        return said
    hidden = read_hidden(RepairHidden, task)
    lines = next(
        found.last_line - found.first_line + 1
        for found in functions(hidden.reference)
        if found.qualname == hidden.function
    )
    return difficulty(str(task.metadata["operator"]), lines, len(hidden.killers), MAX_KILLERS)
