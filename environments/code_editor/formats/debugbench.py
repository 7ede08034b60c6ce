"""DebugBench's Python items (arXiv:2401.04621): judged solutions with inserted bugs, as JSONL.

Each line has ``slug``, ``fn``, ``tests`` (pairs of named arguments and answer), ``buggy_code``,
``oracle_code`` and ``category``. Optional are ``description``, ``level``, and ``recorded``: model name -> its
``fixed_code``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from envkit.env.authored import ImportedTasks
from envkit.env.compare import NumericPolicy
from envkit.environments.code_editor.formats.problems import (
    CallProblem,
    KnownCall,
    LeftOut,
    TaskCollector,
    edit_message,
    parameters_of,
)
from envkit.environments.code_editor.formats.records import Record, read_records
from envkit.environments.code_editor.inputs.call import Call, literal
from envkit.types import JSON

#: Class that holds a solution as a method.
OWNER = "Solution"
#: Names that the judge provides without showing it. Modules come last, so that they win over functions of the
#: same name.
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
#: The judge's comparison of numbers; its statements say "answers within 10^-5 are accepted".
JUDGE = NumericPolicy(rel_tol=1e-5, abs_tol=1e-5, int_as_float=True)


def read(path: Path) -> ImportedTasks:
    """Read all items of a file, with one recorded output per model and item.

    Raises:
        TaskFileError: a line does not have the form above.
    """
    found, numbers = TaskCollector("debugbench"), Counter[str]()
    recorded: dict[str, dict[str, tuple[str, ...]]] = {}
    for record in read_records(path):
        slug = record.text("slug")
        numbers[slug] += 1
        broken, reference = (record.text(field).strip("\n") for field in ("buggy_code", "oracle_code"))
        function, description = f"{OWNER}.{record.text('fn')}", record.text("description", "")
        operator, level = record.text("category"), record.text("level", "unknown")
        tests, answers = _tests(record), _answers(record)
        try:
            parameters = parameters_of(reference, function)
            task = found.add(
                CallProblem(
                    id=f"{slug}/{numbers[slug]}",
                    prompt=description,
                    ask="Fix the bug",
                    broken=f"{broken}\n",
                    reference=f"{reference}\n",
                    function=function,
                    examples=[_example(arguments, value, parameters) for arguments, value in tests],
                    source=slug,
                    operator=operator,
                    metadata={"level": level, "prelude": PRELUDE},
                    numbers=JUDGE,
                    json=True,
                )
            )
        except LeftOut as reason:
            found.leave_out(reason)
            continue
        for model, code in answers.items():
            recorded.setdefault(model, {})[task.id] = (edit_message(broken, code.strip("\n")), "submit")
    return found.imported(recorded)


def _tests(record: Record) -> list[tuple[dict[str, JSON], JSON]]:
    tests: list[tuple[dict[str, JSON], JSON]] = []
    for index, test in enumerate(record.items("tests")):
        match test:
            case [dict() as arguments, value]:
                tests.append((arguments, value))
            case _:
                raise record.error(f"tests[{index}]", repr(test)[:60], "a pair of named arguments and answer")
    return tests


def _example(arguments: Mapping[str, JSON], value: JSON, parameters: Sequence[str]) -> KnownCall:
    if sorted(arguments) != sorted(parameters[: len(arguments)]):
        raise LeftOut("whose tests name other arguments than the right form")
    # The judge passes arguments by position, because a solution may rename its parameters.
    ordered = sorted(arguments, key=parameters.index)
    return KnownCall(Call(tuple(literal(arguments[name]) for name in ordered)), literal(value))


def _answers(record: Record) -> dict[str, str]:
    if "recorded" not in record.data:
        return {}
    models = record.nested("recorded")
    return {model: models.nested(model).text("fixed_code") for model in models.data}
