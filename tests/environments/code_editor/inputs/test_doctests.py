"""Calls with self-contained arguments, read from docstrings, assertions and type hints."""

from __future__ import annotations

import ast

import pytest

from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.inputs.doctests import (
    calls_in,
    docstring_calls,
    is_always_reordered,
    modules_of,
)
from envkit.environments.code_editor.inputs.type_hints import type_hint_calls


def calls_of(docstring: str) -> list[str]:
    return [call.source("f") for call in docstring_calls(docstring, "f")]


@pytest.mark.parametrize(
    ("docstring", "calls"),
    [
        (">>> f(1, 'a')\n2", ["f(1, 'a')"]),
        (">>> list(f([1], key=len))\n", ["f([1], key=len)"]),
        (">>> next(f(x) for x in [1])\n", []),
        (">>> f(1)[0]\n>>> f(1)\n>>> f(2).pop()\n", ["f(1)", "f(2)"]),
        (">>> x = f(3)\n>>> x\n", ["f(3)"]),
        (">>> data = [1, 2]\n>>> f(data, -1)\n", ["f([1, 2], -1)"]),
        (">>> a = 1\n>>> b = [a]\n>>> f(b)\n", ["f([1])"]),
        (">>> a = 1\n>>> a = open('x')\n>>> f(a)\n", []),
        (">>> for a in [1]:\n...     f(a)\n", []),
        (">>> from operator import add\n>>> f(add, 1)\n", ["f(operator.add, 1)"]),
        (">>> import operator\n>>> f(operator.add)\n", ["f(operator.add)"]),
        (">>> import os\n>>> f(os.getcwd)\n", []),
        (">>> f(operator.no_such_thing)\n", []),
        (">>> f(lambda x, y=2: x[0] + y)\n", ["f(lambda x, y=2: x[0] + y)"]),
        (">>> k = 3\n>>> f(lambda x: x + k)\n", ["f(lambda x: x + 3)"]),
        (">>> k = 3\n>>> f(lambda k: k)\n", ["f(lambda k: k)"]),
        (">>> f(lambda x: other(x))\n", []),
        (">>> def odd(x):\n...     return x % 2\n>>> f(odd)\n", ["f(lambda x: x % 2)"]),
        (">>> f(iter([1, 2]), range(3), set('ab'))\n", ["f(iter([1, 2]), range(3), set('ab'))"]),
        (">>> f(itertools.count(1))\n", ["f(itertools.count(1))"]),
        (">>> f(str.upper, int)\n", ["f(str.upper, int)"]),
        (">>> f(*[1], **{})\n", []),
        (">>> f(unknown)\n>>> f(open('x'))\n>>> f(...)\n", []),
        (">>> pkg.f(1)\n", ["f(1)"]),
        (">>> box = 1\n>>> box.f(1)\n", []),
        (">>> f(2 ** 10, 1 + 2j, not True)\n", ["f(2 ** 10, 1 + 2j, not True)"]),
        ("Use it as f(1, (2, 3)) == 5, or f([]) -> None.", ["f(1, (2, 3))", "f([])"]),
        ("   >>> f(1)\n  2", ["f(1)"]),
        (">>> f('\ud800')\n>>> f(1)\n", ["f(1)"]),
        ("f('\ud800') == f(1)", ["f(1)"]),
        ("", []),
    ],
)
def test_docstring_calls(docstring: str, calls: list[str]) -> None:
    assert calls_of(docstring) == calls


def test_needed_modules_are_named() -> None:
    calls = [Call(("operator.add",), {"key": "lambda x: math.floor(x)"}), Call(("string",))]
    assert modules_of(calls) == ("math", "operator", "string")


def test_calls_in_assertions() -> None:
    code = ast.parse("def check(c):\n    assert c([1.0], 2) == True\n    assert c(x) and c(2) == 3\n")
    assert calls_in(code.body, "c") == [Call(("[1.0]", "2")), Call(("2",))]


@pytest.mark.parametrize(
    ("signature", "has_calls"),
    [
        ("n: int", True),
        ("n: int, text: str = ''", True),
        ("items: list[int], n: Optional[int]", True),
        ("table: dict[str, list[float]]", True),
        ("pairs: Sequence[tuple[int, str]], flag: bool", True),
        ("row: tuple[int, ...]", True),
        ("one: 'int | None'", True),
        ("order: Literal['<', '>']", False),
        ("mode: Literal['r+']", False),
        ("items: 'list of ints'", False),
        ("n: Optional", False),
        ("n", False),
        ("f: Callable[[int], int]", False),
        ("node: TreeNode", False),
        ("items: list[TreeNode]", False),
        ("*items: int", False),
        ("", False),
    ],
)
def test_calls_from_hints(signature: str, has_calls: bool) -> None:
    [node] = ast.parse(f"def f({signature}): pass").body
    assert isinstance(node, ast.FunctionDef)
    calls = type_hint_calls(node)
    assert bool(calls) is has_calls
    for call in calls:
        for source in call.args:
            ast.literal_eval(source)


@pytest.mark.parametrize(
    ("docstring", "reordered"),
    [
        (">>> sorted(f(1))\n[2]\n>>> sorted(list(f(2)), key=str)\n[3]", True),
        (">>> set(f(1)) == {2}\nTrue", True),
        (">>> sorted(f(1))\n[2]\n>>> list(f(2))\n[3]", False),
        (">>> f(sorted([2, 1]))\n3", False),
        (">>> sorted([f(1), f(2)])\n[3, 4]", False),
        ("sorted", False),
    ],
)
def test_examples_that_always_sort_the_answer(docstring: str, reordered: bool) -> None:
    assert is_always_reordered(docstring, "f") is reordered
