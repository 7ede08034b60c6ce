"""How much of a file's code an edit has changed."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, cast

from envkit.syntax import parse

#: Words, signs, and the beginnings of lines, for where a line stands says what block it is in.
_TOKEN = re.compile(r"\n *|\w+|\S")


def changed(old: str, new: str) -> int | None:
    r"""Tokens in the one stretch of code that an edit changed, before or after it, whichever are more.

    What makes no other program is no change: comments, layout, quotes, parentheses, types that are declared,
    statements that do nothing, docstrings among them. ``None`` where there is no telling: one of them is not
    Python, or nests too deep.

    >>> changed("def f(a):\n    return a + 1\n", "def f(a: int):\n    return (a - 1)  # less\n")
    1
    """
    try:
        was, now = _tokens(old), _tokens(new)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    same = _common(was, now)
    # What begins alike is not to be counted again from the end.
    alike = min(_common(was[::-1], now[::-1]), min(len(was), len(now)) - same)
    return max(len(was), len(now)) - same - alike


def _common(some: Sequence[str], others: Sequence[str]) -> int:
    """How many they have in common at the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, others, strict=False)))


def _tokens(source: str) -> list[str]:
    """The code of a file as the compiler understands it, token by token; errors as of `parse`."""
    return _TOKEN.findall(ast.unparse(_Bare().visit(parse(source))))


class _Bare(ast.NodeTransformer):
    """Takes out what does nothing when it runs."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            block: Any = getattr(node, name, None)
            if block and isinstance(block, list):  # an expression's body is none
                code = [one for one in cast("list[ast.stmt]", block) if not _is_idle(one)]
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
        if node.value is None:  # a field of a dataclass, it may be
            return node
        return ast.copy_location(ast.Assign([node.target], node.value), node)


def _is_idle(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Pass)
