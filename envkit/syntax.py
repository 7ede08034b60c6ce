"""Compiling Python source, one thread at a time."""

from __future__ import annotations

import ast
import threading
import warnings
from typing import Any

_LOCK = threading.Lock()
#: Most nodes that a text may become in code; what an agent wrote is compiled in this process.
_MOST_NODES = 200_000


def compiled(source: str, *, mode: str = "exec", flags: int = 0) -> Any:
    r"""`compile` for sources of any origin: safe in threads, without a warning for every ``"\d"``.

    CPython counts the depth of a tree under construction per interpreter, not per thread, and raises
    SystemError ("AST constructor recursion depth mismatch") where two threads build trees at once
    (seen with 3.11.7; https://github.com/python/cpython/issues/106905). `warnings.catch_warnings` is
    not safe between threads either.

    Raises:
        SyntaxError: not Python.
        ValueError, RecursionError, MemoryError: text that the compiler gives up on, or code of many times its
            size.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = compile(source, "<source>", mode, flags | ast.PyCF_ONLY_AST, dont_inherit=True)
        if flags & ast.PyCF_ONLY_AST:
            return tree
        if "finally" in source and nodes_of(tree) > _MOST_NODES:
            raise ValueError("its finally blocks become too much code")
        return compile(tree, "<source>", mode, flags, dont_inherit=True)


def nodes_of(tree: ast.AST) -> float:
    r"""How many nodes of a tree become code, where every way out of a ``try`` has its ``finally`` once more.

    So blocks in one another multiply: 19 of them, in 650 bytes, are a gigabyte.

    >>> nodes_of(ast.parse("try: a\nfinally: b"))
    11.0
    """
    sizes: dict[ast.AST, tuple[float, float]] = {}  # nodes, and ways out of what is around
    for node in reversed([*ast.walk(tree)]):  # what is inside comes first
        final = {*node.finalbody} if isinstance(node, ast.Try | ast.TryStar) else set[ast.AST]()
        size, ways = 1.0, float(isinstance(node, ast.Return | ast.Break | ast.Continue))
        copied = copied_ways = 0.0
        for child in ast.iter_child_nodes(node):
            if child in final:
                copied, copied_ways = copied + sizes[child][0], copied_ways + sizes[child][1]
            else:
                size, ways = size + sizes[child][0], ways + sizes[child][1]
        copies = ways + 2  # one at the end, and one for errors
        size, ways = size + copies * copied, ways + copies * copied_ways
        is_scope = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        sizes[node] = size, 0.0 if is_scope else ways
    return sizes[tree][0]


def parse(source: str) -> ast.Module:
    """The tree of a module; errors as of `compiled`."""
    return compiled(source, flags=ast.PyCF_ONLY_AST)


def parse_expression(source: str) -> ast.expr:
    """The tree of one expression; errors as of `compiled`."""
    return compiled(source, mode="eval", flags=ast.PyCF_ONLY_AST).body
