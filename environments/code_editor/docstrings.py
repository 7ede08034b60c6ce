"""Docstrings of one function's source: shown apart from its code, kept when the code is rewritten.

A small model then reads the docstring once and need not write it again.
"""

from __future__ import annotations

import ast
import textwrap


def split(function: str) -> tuple[str, str]:
    r"""A function's source without its docstring, and the docstring's text (empty when there is none).

    >>> split('def f():\n    "One."\n    return 1')
    ('def f():\n    return 1', 'One.')
    """
    node = _function(function)
    span = _span(node) if node is not None else None
    if node is None or span is None:
        return function, ""
    lines = function.split("\n")
    return "\n".join([*lines[: span[0] - 1], *lines[span[1] :]]), ast.get_docstring(node) or ""


def keep(old: str, new: str) -> str:
    """``new`` with the docstring of ``old`` put back, where it has none and there is room for one."""
    was, now = _function(old), _function(new)
    span = _span(was) if was is not None else None
    if span is None or now is None or ast.get_docstring(now) is not None:
        return new
    first = now.body[0].lineno
    if first == now.lineno:  # the body stands on the line of the def
        return new
    docstring = textwrap.dedent("\n".join(old.split("\n")[span[0] - 1 : span[1]]))
    lines = new.split("\n")
    margin = " " * now.body[0].col_offset
    return "\n".join(
        [*lines[: first - 1], *textwrap.indent(docstring, margin).split("\n"), *lines[first - 1 :]]
    )


def _function(source: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    try:
        body = ast.parse(textwrap.dedent(source)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return body[0] if len(body) == 1 and isinstance(body[0], ast.FunctionDef | ast.AsyncFunctionDef) else None


def _span(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[int, int] | None:
    """First and last line of the docstring, 1-based, when it has lines of its own."""
    first = node.body[0]
    if ast.get_docstring(node) is None or len(node.body) == 1 or first.lineno == node.lineno:
        return None
    return first.lineno, first.end_lineno or first.lineno
