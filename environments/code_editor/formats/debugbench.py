"""DebugBench's Python items (arXiv:2401.04621): solutions of judged problems with bugs put in, as JSONL.

A line has ``slug``, ``fn``, ``tests`` (pairs of named arguments and answer), ``buggy_code``, ``oracle_code``
and ``category``; it may have ``description``, ``level``, and ``recorded``: name of a model -> ``fixed_code``
that it gave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from envkit.env import ImportedTasks
from envkit.environments.code_editor.formats.rows import Row, read_rows
from envkit.environments.code_editor.formats.stated import (
    Collection,
    Example,
    LeftOut,
    Stated,
    parameters_of,
    said_so,
)
from envkit.grading import NumericPolicy
from envkit.inputs.call import Call, literal
from envkit.types import JSON

#: The class whose method a solution is.
OWNER = "Solution"
#: What the judge has in scope, modules last so that their names win over functions of the same name.
PRELUDE = """\
from bisect import *
from collections import *
from copy import *
from datetime import *
from functools import *
from heapq import *
from itertools import *
from json import *
from math import *
from operator import *
from random import *
from re import *
from statistics import *
from string import *
from sys import *
from typing import *
from builtins import *
import bisect, collections, copy, datetime, functools, heapq, itertools, json, math, operator
import random, re, statistics, string, sys, typing


"""
#: How the judge compares numbers, from its statements: "answers within 10^-5 are accepted".
JUDGE = NumericPolicy(rel_tol=1e-5, abs_tol=1e-5, int_as_float=True)


def read(path: Path) -> ImportedTasks:
    """All items of a file, and one recorded output of each model for each.

    Raises:
        TaskFileError: a line is not as said above.
    """
    found, numbers = Collection("debugbench"), Counter[str]()
    recorded: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in read_rows(path):
        slug = row.text("slug")
        numbers[slug] += 1
        wrong, right = (row.text(field).strip("\n") for field in ("buggy_code", "oracle_code"))
        function, said = f"{OWNER}.{row.text('fn')}", row.text("description", "")
        operator, level = row.text("category"), row.text("level", "unknown")
        tests, answers = _tests(row), _answers(row)
        try:
            parameters = parameters_of(right, function)
            task = found.add(
                Stated(
                    id=f"{slug}/{numbers[slug]}",
                    said=said,
                    ask="Fix the bug",
                    wrong=f"{PRELUDE}{wrong}\n",
                    right=f"{PRELUDE}{right}\n",
                    function=function,
                    examples=[_example(arguments, value, parameters) for arguments, value in tests],
                    source=slug,
                    operator=operator,
                    metadata={"level": level},
                    numbers=JUDGE,
                    json=True,
                )
            )
        except LeftOut as reason:
            found.leave_out(reason)
            continue
        for model, code in answers.items():
            recorded.setdefault(model, {})[task.id] = (said_so(wrong, code.strip("\n")), "submit")
    return found.imported(recorded)


def _tests(row: Row) -> list[tuple[dict[str, JSON], JSON]]:
    tests: list[tuple[dict[str, JSON], JSON]] = []
    for index, test in enumerate(row.items("tests")):
        match test:
            case [dict() as arguments, value]:
                tests.append((arguments, value))
            case _:
                raise row.error(f"tests[{index}]", repr(test)[:60], "a pair of named arguments and answer")
    return tests


def _example(arguments: Mapping[str, JSON], value: JSON, parameters: Sequence[str]) -> Example:
    if sorted(arguments) != sorted(parameters[: len(arguments)]):
        raise LeftOut("whose tests name other arguments than the right form")
    # The judge passes by place: a solution may name its parameters otherwise.
    ordered = sorted(arguments, key=parameters.index)
    return Example(Call(tuple(literal(arguments[name]) for name in ordered)), literal(value))


def _answers(row: Row) -> dict[str, str]:
    if "recorded" not in row.data:
        return {}
    models = row.row("recorded")
    return {model: models.row(model).text("fixed_code") for model in models.data}
