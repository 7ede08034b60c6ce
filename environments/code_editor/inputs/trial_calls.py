"""Calls to try on a function whose docstring and type hints show none: one of them may fit.

A function of an untyped package does not say what it takes. But a program can find out: it calls the function
with numbers, texts, lists and dictionaries, and sees which ones are answered. `calls_that_fit` chooses from
the answers.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Sequence

from envkit.environments.code_editor.inputs.call import Call

#: Values of each kind, as source.
_KINDS = (
    ("3", "10", "0", "7"),
    ("'racecar'", "'Hello World'", "'a1b2'", "''"),
    ("[3, 1, 2]", "[1, 2, 2, 5]", "[4]", "[]"),
    ("['b', 'a', 'c']", "['x', 'y', 'x']", "['ab']", "[]"),
    ("{'a': 1, 'b': 2}", "{'x': 3}", "{'k': 1, 'a': 5, 'c': 1}", "{}"),
    ("2.5", "0.5", "-1.5", "10.0"),
    ("[[1, 2], [3, 4]]", "[[5]]", "[[1, 0, 2], [0, 3, 0]]", "[[1], [2]]"),
)
_ROWS = len(_KINDS[0])
#: Most required parameters; each one more takes seven times as many calls.
_MAX_PARAMETERS = 3
#: Fewest different answers of calls that fit. With fewer, they tell little of the function.
_FEWEST_ANSWERS = 3


def trial_calls(function: ast.FunctionDef) -> list[Call]:
    """Return calls with arguments of every combination of kinds, `_ROWS` in a row of each combination.

    Empty if the function needs no argument, more than `_MAX_PARAMETERS`, or a keyword.
    """
    spec = function.args
    required = len(spec.posonlyargs) + len(spec.args) - len(spec.defaults)
    if not 1 <= required <= _MAX_PARAMETERS or any(default is None for default in spec.kw_defaults):
        return []
    return [
        # A different stride for each parameter, because otherwise all would change in step.
        Call(tuple(kind[(row * (2 * index + 1) + index) % _ROWS] for index, kind in enumerate(kinds)))
        for kinds in itertools.product(_KINDS, repeat=required)
        for row in range(_ROWS)
    ]


def calls_that_fit(answers: Sequence[str | None]) -> list[int]:
    """Choose the kinds of arguments that a function seems to take.

    Args:
        answers: of each of `trial_calls`, as text; ``None`` for a call without a usable answer.

    Returns:
        Indices of the answered calls with these kinds: those with the most different answers, the first ones
        if several have equally many. Calls whose answer an earlier one has come last. Empty if no kinds give
        three.
    """
    best: list[int] = []
    most = _FEWEST_ANSWERS - 1
    for start in range(0, len(answers), _ROWS):
        answered = [index for index in range(start, start + _ROWS) if answers[index] is not None]
        first = {answers[index]: index for index in reversed(answered)}
        if len(first) > most:
            new = sorted(first.values())
            best, most = [*new, *(index for index in answered if index not in new)], len(new)
    return best
