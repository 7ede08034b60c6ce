"""Compiling Python source, one thread at a time."""

from __future__ import annotations

import ast
import threading
import warnings
from typing import Any

_LOCK = threading.Lock()


def compiled(source: str, *, mode: str = "exec", flags: int = 0) -> Any:
    r"""`compile` for sources of any origin: safe in threads, without a warning for every ``"\d"``.

    CPython counts the depth of a tree under construction per interpreter, not per thread, and raises
    SystemError ("AST constructor recursion depth mismatch") where two threads build trees at once
    (seen with 3.11.7; https://github.com/python/cpython/issues/106905). `warnings.catch_warnings` is
    not safe between threads either.

    Raises:
        SyntaxError: not Python.
        ValueError, RecursionError, MemoryError: text that the compiler gives up on.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compile(source, "<source>", mode, flags, dont_inherit=True)


def parse(source: str) -> ast.Module:
    """The tree of a module; errors as of `compiled`."""
    return compiled(source, flags=ast.PyCF_ONLY_AST)


def parse_expression(source: str) -> ast.expr:
    """The tree of one expression; errors as of `compiled`."""
    return compiled(source, mode="eval", flags=ast.PyCF_ONLY_AST).body
