"""Compile and parse Python source in a thread-safe way."""

from __future__ import annotations

import ast
import threading
import warnings
from typing import Any

_LOCK = threading.Lock()
#: Most nodes that may be compiled. This process compiles code of agents, so the cost needs a bound.
_MAX_NODES = 200_000


def compiled(source: str, *, mode: str = "exec", flags: int = 0) -> Any:
    r"""Compile source of any origin: thread-safe, and without warnings such as for ``"\d"``.

    CPython counts the depth of a tree under construction per interpreter, not per thread, and raises
    SystemError ("AST constructor recursion depth mismatch") if two threads build trees at once
    (seen with 3.11.7; https://github.com/python/cpython/issues/106905). `warnings.catch_warnings` is
    not safe between threads either.

    Raises:
        SyntaxError: the source is not Python.
        ValueError, RecursionError, MemoryError: the compiler gives up, or the compiled code would be many
            times larger than the source.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = compile(source, "<source>", mode, flags | ast.PyCF_ONLY_AST, dont_inherit=True)
            if flags & ast.PyCF_ONLY_AST:
                return tree
            if "finally" in source and nodes_of(tree) > _MAX_NODES:
                raise ValueError("its nested finally blocks compile to too much code")
            return compile(tree, "<source>", mode, flags, dont_inherit=True)
        except (SystemError, OverflowError) as error:  # faults of the compiler, met with hostile source
            raise ValueError(f"the compiler fails: {error}") from error


def nodes_of(tree: ast.AST) -> float:
    r"""Count the nodes that are compiled. Each exit of a ``try`` compiles its ``finally`` block again.

    So nested blocks multiply: 19 of them, in 650 bytes of source, compile to a gigabyte.

    >>> nodes_of(ast.parse("try: a\nfinally: b"))
    11.0
    """
    sizes: dict[ast.AST, tuple[float, float]] = {}  # nodes, and exits of the block
    for node in reversed([*ast.walk(tree)]):  # inner nodes first
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
    """Parse a module; raises as `compiled` does."""
    return compiled(source, flags=ast.PyCF_ONLY_AST)


def parse_expression(source: str) -> ast.expr:
    """Parse one expression; raises as `compiled` does."""
    return compiled(source, mode="eval", flags=ast.PyCF_ONLY_AST).body
