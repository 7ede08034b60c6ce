"""Definitions and syntax errors of Python text."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envkit.environments.code_editor.source.syntax import (
    Definition,
    SyntaxProblem,
    definitions,
    find,
    syntax_problem,
)

SOURCE = """\
import math

@decorated
@twice(3)
class Stack:
    def push(self, item):
        def inner(): pass

    async def pop(
        self,
    ):
        return 1


if math:
    def push():
        pass
"""


def finally_in_finally(levels: int) -> str:
    """Return a few hundred bytes of source whose compiled code doubles with each level."""
    lines = [f"{' ' * (level + 1)}{text}" for level in range(levels) for text in ("try:0", "finally:")]
    return "\n".join(["def f():", *lines, " " * (levels + 1) + "0"])


def test_too_deeply_nested_code_counts_as_invalid() -> None:
    assert syntax_problem(finally_in_finally(4)) is None
    assert syntax_problem(finally_in_finally(19)) == SyntaxProblem(
        1, 1, "its nested finally blocks compile to too much code"
    )
    ways = "\n".join("  return" for _ in range(500))
    body = "\n".join("  a" for _ in range(500))
    assert syntax_problem(f"def f():\n try:\n{ways}\n finally:\n{body}") is not None
    assert syntax_problem(f"def f():\n try:\n  return\n finally:\n{body}") is None


@pytest.mark.parametrize(
    "source",
    [
        "é = 'ü'; return 1\n",
        "def f():\n    é = 'ü'; nonlocal q\n",
        "'é'; None = 1\n",
        "é := 1\n",
        "try: 'é'; break\nfinally: pass\n",
    ],
)
def test_errors_have_the_compilers_positions(source: str) -> None:
    with pytest.raises(SyntaxError) as wanted:
        compile(source, "<source>", "exec", dont_inherit=True)
    error = wanted.value
    assert syntax_problem(source) == SyntaxProblem(error.lineno or 0, error.offset or 0, error.msg)


def test_definitions_are_found_with_their_lines() -> None:
    assert definitions(SOURCE) == [
        Definition("Stack", "class", 3, 12, "class Stack:", 0),
        Definition("Stack.push", "def", 6, 7, "def push(self, item):", 1),
        Definition("Stack.push.inner", "def", 7, 7, "def inner(): pass", 2),
        Definition("Stack.pop", "def", 9, 12, "async def pop(", 1),
        Definition("push", "def", 16, 17, "def push():", 0),
    ]


def test_find_prefers_the_exact_name() -> None:
    assert [item.name for item in find(SOURCE, "push")] == ["push"]
    assert [item.name for item in find(SOURCE, "Stack.push")] == ["Stack.push"]
    assert [item.name for item in find(SOURCE, "inner")] == ["Stack.push.inner"]
    assert find(SOURCE, "peek") == []


def test_definitions_are_found_in_text_with_syntax_errors() -> None:
    assert definitions("def whole():\n    pass\n\ndef half(:\n")[0].name == "whole"
    assert definitions("") == []


@pytest.mark.parametrize("depth", [200, 3000])
def test_deep_nesting_is_handled(depth: int) -> None:
    for deep in ("(" * depth + "1" + ")" * depth, "1" + " + 1" * depth, "not " * depth + "1"):
        assert [item.name for item in definitions(f"def f():\n    return {deep}\n")] == ["f"]
        syntax_problem(f"def f():\n    return {deep}\n")


@pytest.mark.parametrize(
    ("source", "line", "column", "message"),
    [
        ("def f():\n    return (1\n", 2, 12, "'(' was never closed"),
        ("x = 'é' )\n", 1, 9, "unmatched ')'"),
        ("return 1\n", 1, 1, "'return' outside function"),
        ("def f():\n\tx\n        y\n", 3, 1, "inconsistent use of tabs"),
        ("def f():\nx\n", 2, 1, "expected an indented block"),
        ("x = 1\ny = \n", 2, 5, "invalid syntax"),
    ],
)
def test_syntax_errors_have_line_and_column(source: str, line: int, column: int, message: str) -> None:
    problem = syntax_problem(source)
    assert problem is not None
    assert message in problem.message
    assert (problem.line, problem.column) == (line, column)


def test_valid_python_has_no_syntax_problem() -> None:
    assert syntax_problem(SOURCE) is None
    assert syntax_problem("") is None


def test_warnings_are_neither_shown_nor_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert syntax_problem("x = '\\d'\ny = x is 1\n") is None


@given(st.text(max_size=200))
def test_no_text_raises(text: str) -> None:
    lines = len(text.split("\n"))
    assert all(1 <= item.first_line <= item.last_line <= lines for item in definitions(text))
    problem = syntax_problem(text)
    assert problem is None or isinstance(problem, SyntaxProblem)
