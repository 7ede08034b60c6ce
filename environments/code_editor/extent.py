"""How much of a file's code an edit has changed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import tree_sitter_python
from tree_sitter import Language, Node, Parser

#: Whose type is written behind a colon, which goes with it.
_TYPED = ("assignment", "typed_parameter", "typed_default_parameter")


def changed(old: str, new: str) -> int:
    r"""Tokens in the one stretch of code that an edit changed, before or after it, whichever are more.

    Comments, docstrings, types and blank space are no code; where a block begins and ends is.

    >>> changed("def f(a):\n    return a + 1\n", "def f(a: int):\n    return a - 1  # less\n")
    1
    """
    was, now = _tokens(old), _tokens(new)
    same = _common(was, now)
    # What begins alike is not to be counted again from the end.
    rest = min(len(was), len(now)) - same
    alike = min(_common(was[::-1], now[::-1]), rest)
    return max(len(was), len(now)) - same - alike


def _common(some: Sequence[str], others: Sequence[str]) -> int:
    """How many they have in common at the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, others, strict=False)))


def _tokens(source: str) -> list[str]:
    """The code of a file, token by token."""
    parser = Parser(Language(tree_sitter_python.language()))
    found: list[str] = []
    # No recursion: a long chain of operators nests deeper than Python's stack.
    pending: list[Node | str] = [parser.parse(source.encode()).root_node]
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            found.append(node)
        elif node.type == "string" or not node.children:
            found.append((node.text or b"").decode())
        else:
            code = [child for child in reversed(node.children) if not _is_remark(child, node)]
            pending += ["}", *code, "{"] if node.type == "block" else code
    return found


def _is_remark(node: Node, parent: Node) -> bool:
    """Whether it says something to people only."""
    if node.type == "expression_statement":
        return [child.type for child in node.children] == ["string"]
    return node.type in ("comment", "type", "->") or (node.type == ":" and parent.type in _TYPED)
