"""Parsing Python source, one thread at a time."""

from __future__ import annotations

import ast
import threading

_LOCK = threading.Lock()


def parse(source: str) -> ast.Module:
    """`ast.parse`, safe in threads.

    CPython counts the depth of a tree under construction per interpreter, not per thread, and raises
    SystemError ("AST constructor recursion depth mismatch") where two threads build trees at once
    (seen with 3.11.7; https://github.com/python/cpython/issues/106905).
    """
    with _LOCK:
        return ast.parse(source)


def parse_expression(source: str) -> ast.expr:
    """The tree of one expression, likewise."""
    with _LOCK:
        return ast.parse(source, mode="eval").body
