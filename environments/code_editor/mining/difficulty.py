"""Estimate a mined task's difficulty from the task alone; not a measured success rate."""

from __future__ import annotations

import math
from typing import Final

from envkit.env.hidden import read_hidden
from envkit.environments.code_editor.mining.build import MAX_KILLERS
from envkit.environments.code_editor.mining.functions import functions
from envkit.environments.code_editor.mining.hidden import RepairHidden
from envkit.types import Task

#: Operators from bugs that are visible on their line to bugs that only show in behaviour.
_VISIBLE: Final = (
    *("negation", "comparison", "boolean", "index", "arithmetic"),
    *("constant", "return", "arguments", "variable", "statement"),
)
#: Lines beyond which a function's length adds no difficulty.
_LONG: Final = 64
#: Weights of the parts of the score.
_QUIET, _LENGTH, _OPERATOR = 0.4, 0.35, 0.25


def difficulty(operator: str, lines: int, killers: int, total: int) -> float:
    """Score a task in [0, 1]; higher is harder.

    It grows with the share of calls or tests that the bug passes, with the function's length, and with how
    little the operator's bugs show on their line.

    Args:
        operator: one of `OPERATORS` of mutations; anything else counts as the least visible.
        lines: of the function, at least 1.
        killers: calls or tests that the bug fails, at least 1.
        total: calls or tests in all.

    >>> easy, hard = difficulty("negation", 3, 40, 40), difficulty("statement", 60, 1, 40)
    >>> round(easy, 2), round(hard, 2)
    (0.09, 0.98)
    """
    quiet = 1 - killers / max(total, killers)
    length = min(1.0, math.log(max(lines, 1)) / math.log(_LONG))
    hidden = _VISIBLE.index(operator) / (len(_VISIBLE) - 1) if operator in _VISIBLE else 1.0
    return _QUIET * quiet + _LENGTH * length + _OPERATOR * hidden


def difficulty_of(task: Task) -> float:
    """`difficulty` of a mined task.

    A task that is graded by calls stores at most ``MAX_KILLERS`` killing calls, see
    `envkit.environments.code_editor.mining.build`. So tasks with few killing calls get different scores, and
    those with more get the same.
    """
    stored = task.metadata.get("difficulty")
    if isinstance(stored, float):
        return stored
    hidden = read_hidden(RepairHidden, task)
    lines = next(
        found.last_line - found.first_line + 1
        for found in functions(hidden.reference)
        if found.qualname == hidden.function
    )
    return difficulty(str(task.metadata["operator"]), lines, len(hidden.killers), MAX_KILLERS)
