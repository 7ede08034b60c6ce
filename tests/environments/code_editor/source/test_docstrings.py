"""Splitting docstrings off a function's source and putting them back."""

from __future__ import annotations

import ast
import warnings

import pytest

from envkit.environments.code_editor.source.docstrings import keep, split


def test_a_docstring_is_split_off() -> None:
    assert split('def f(a):\n    """One.\n\n    Two.\n    """\n    return a') == (
        "def f(a):\n    return a",
        "One.\n\nTwo.",
    )


@pytest.mark.parametrize(
    "source",
    [
        "def f(a):\n    return a",
        'def f(a):\n    """All there is."""',
        'def f(a): "Doc."; return a',
        'def f(a):\n    "Doc."; return a',
        'def f(\n    a,\n): "Doc."; return a',
        'def f(a):\n    "Doc."  # a comment\n    return a',
        "not python (",
        "x = 1",
    ],
)
def test_a_docstring_that_cannot_be_split_is_kept(source: str) -> None:
    assert split(source) == (source, "")


def test_a_methods_docstring_is_split_off() -> None:
    source = '    def f(self):\n        """Doc."""\n        return 1'
    assert split(source) == ("    def f(self):\n        return 1", "Doc.")


def test_split_and_keep_are_inverse() -> None:
    source = 'def f(a):\n    """One.\n\n    Two.\n    """\n    return a'
    assert keep(source, split(source)[0]) == source


@pytest.mark.parametrize(
    ("new", "room"),
    [
        ("def f(a):\n    return 2", True),
        ("def f(a):\n\treturn 2", True),
        ("async def f(a):\n  # why\n  return 2", True),
        ("def f(\n    a,\n):\n    return 2", True),
        ("@g\ndef f(a):\n    @h\n    def inner(): pass\n    return inner", True),
        ("def f(a): return 2", False),
        ("def f(\n    a\n): return 2", False),
        ('def f(a):\n    "Mine."\n    return 2', False),
    ],
)
def test_keep_adds_the_docstring_and_nothing_else(new: str, room: bool) -> None:
    kept = keep('def f(a):\n    """Old."""\n    return a', new)
    if room:
        assert kept.count('"""Old."""') == 1
        function = ast.parse(kept).body[0]
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert ast.get_docstring(function) == "Old."
        del function.body[0]
        assert ast.dump(function) == ast.dump(ast.parse(new).body[0])
    else:
        assert kept == new


def test_odd_escapes_are_handled() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert split('def f(a):\n    "Doc."\n    return "\\d"')[1] == "Doc."
