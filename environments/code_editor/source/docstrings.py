"""Separate a function's docstring from its code, and put it back when the code is rewritten.

A small model reads the docstring once and does not have to write it again.
"""

from __future__ import annotations

import ast
import textwrap

from envkit.runtime.syntax import parse

#: Longest indentation that is put before each line of a docstring.
_MAX_MARGIN = 200

Function = ast.FunctionDef | ast.AsyncFunctionDef


def split(function: str) -> tuple[str, str]:
    r"""Return a function's source without its docstring, and the docstring's text, empty if there is none.

    >>> split('def f():\n    "One."\n    return 1')
    ('def f():\n    return 1', 'One.')
    """
    node = _function(function)
    span = _span(function, node) if node is not None else None
    if node is None or span is None:
        return function, ""
    lines = function.split("\n")
    return "\n".join([*lines[: span[0] - 1], *lines[span[1] :]]), ast.get_docstring(node) or ""


def keep(old: str, new: str) -> str:
    """Return ``new`` with the docstring of ``old``, unless it has one or its body is on the ``def`` line."""
    was, now = _function(old), _function(new)
    span = _span(old, was) if was is not None else None
    if span is None or now is None or ast.get_docstring(now) is not None:
        return new
    first = now.body[0]
    decorators: list[ast.expr] = getattr(first, "decorator_list", [])
    at = min(node.lineno for node in (first, *decorators)) - 1
    lines = new.split("\n")
    margin = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    if first.col_offset != len(margin) or len(margin) > _MAX_MARGIN:  # or the body is on the def line
        return new
    docstring = textwrap.dedent("\n".join(old.split("\n")[span[0] - 1 : span[1]]))
    return "\n".join([*lines[:at], textwrap.indent(docstring, margin), *lines[at:]])


def _function(source: str) -> Function | None:
    try:
        body = parse(textwrap.dedent(source)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return body[0] if len(body) == 1 and isinstance(body[0], Function) else None


def _span(source: str, node: Function) -> tuple[int, int] | None:
    """First and last line of the docstring, 1-based; ``None`` if it shares a line or is the whole body."""
    first = node.body[0]
    if ast.get_docstring(node) is None or len(node.body) == 1 or first.end_lineno is None:
        return None
    lines = (
        textwrap.dedent(source).encode().split(b"\n")
    )  # bytes, because the compiler counts columns in bytes
    before = lines[first.lineno - 1][: first.col_offset]
    after = lines[first.end_lineno - 1][first.end_col_offset :]
    return None if before.strip() or after.strip() else (first.lineno, first.end_lineno)
