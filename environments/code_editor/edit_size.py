"""Measure how much of a file's code an edit has changed."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, cast

from envkit.syntax import parse

#: Words, punctuation, and line starts with their indentation, which determines the block.
_TOKEN = re.compile(r"\n *|\w+|\S")


def changed_tokens(old: str, new: str) -> int | None:
    r"""Return the length, in tokens, of the shortest single stretch that contains all changes.

    The longer of the stretch's old and new form counts. Comments, layout, quotes, parentheses, type
    annotations and statements without effect, such as docstrings, do not count. ``None`` if a text is not
    Python or is nested too deeply.

    >>> changed_tokens("def f(a):\n    return a + 1\n", "def f(a: int):\n    return (a - 1)  # less\n")
    1
    """
    try:
        was, now = _tokens(old), _tokens(new)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    same = _common(was, now)
    # The common suffix must not overlap the common prefix.
    same_end = min(_common(was[::-1], now[::-1]), min(len(was), len(now)) - same)
    return max(len(was), len(now)) - same - same_end


def _common(some: Sequence[str], others: Sequence[str]) -> int:
    """Length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, others, strict=False)))


def _tokens(source: str) -> list[str]:
    """Split normalized code into tokens; errors as for `parse`."""
    return _TOKEN.findall(ast.unparse(_Bare().visit(parse(source))))


class _Bare(ast.NodeTransformer):
    """Removes annotations and statements without effect."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            block: Any = getattr(node, name, None)
            if block and isinstance(block, list):  # the body of a lambda is an expression, not a list
                code = [node for node in cast("list[ast.stmt]", block) if not _has_no_effect(node)]
                setattr(node, name, code or [ast.Pass()])
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:  # may be a field of a dataclass
            return node
        return ast.copy_location(ast.Assign([node.target], node.value), node)


def _has_no_effect(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Pass)
