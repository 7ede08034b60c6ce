"""Measure how much of a file's code an edit has changed."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, cast

from envkit.environments.code_editor.source.dependencies import statement_texts
from envkit.runtime.syntax import parse

#: Words, punctuation, and line starts with their indentation, which determines the block.
_TOKEN = re.compile(r"\n *|\w+|\S")
#: Most nodes of the changed statements. More are not measured: no small edit has so many.
_MAX_NODES = 20_000


def changed_tokens(old: str, new: str) -> int | None:
    r"""Return the length, in tokens, of the shortest single stretch that contains all changes.

    The longer of the stretch's old and new form counts. Comments, layout, quotes, parentheses, type
    annotations and statements without effect, such as docstrings, do not count. ``None`` if a text is not
    Python, is nested too deeply, or changes statements of very many nodes.

    >>> changed_tokens("def f(a):\n    return a + 1\n", "def f(a: int):\n    return (a - 1)  # less\n")
    1
    """
    try:
        was, now = statement_texts(old), statement_texts(new)
        some, others = _without_common(was, now)
        if max(_nodes(some), _nodes(others)) > _MAX_NODES:
            return None
        before, after = _tokens(some), _tokens(others)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    same = _common(before, after)
    # The common suffix must not overlap the common prefix.
    same_end = min(_common(before[::-1], after[::-1]), min(len(before), len(after)) - same)
    return max(len(before), len(after)) - same - same_end


def _without_common(
    was: Mapping[ast.stmt, str], now: Mapping[ast.stmt, str]
) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Leave out the statements at both ends that have equal texts, because writing out a file is slow."""
    texts, new_texts = [*was.values()], [*now.values()]
    start = _common(texts, new_texts)
    end = min(_common(texts[::-1], new_texts[::-1]), min(len(texts), len(new_texts)) - start)
    first, last = [*was][:start], [*was][len(texts) - end :]
    # A short one stays on each side, because the first statement of a text begins with no line break.
    before, after = ([_stand_in(node) for node in nodes] for nodes in (first[-1:], last[:1]))
    return (
        [*before, *[*was][start : len(texts) - end], *after],
        [*before, *[*now][start : len(new_texts) - end], *after],
    )


def _stand_in(statement: ast.stmt) -> ast.stmt:
    """A short statement with as many line breaks before it."""
    is_definition = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    return parse("class _: pass" if is_definition else "_").body[0]


def _common(some: Sequence[str], others: Sequence[str]) -> int:
    """Length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, others, strict=False)))


def _nodes(statements: Sequence[ast.stmt]) -> int:
    return sum(1 for statement in statements for _ in ast.walk(statement))


def _tokens(statements: Sequence[ast.stmt]) -> list[str]:
    """Normalize statements, write them out and split them into tokens.

    Raises:
        ValueError, RecursionError: they cannot be written out.
    """
    return _TOKEN.findall(ast.unparse(_Bare().visit(ast.Module([*statements], []))))


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
