"""Find the definitions and the first syntax error of a Python file."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import tree_sitter_python
from tree_sitter import Language, Node, Parser

from envkit.runtime.syntax import compiled

_KINDS: Final = {"function_definition": "def", "class_definition": "class"}
#: Nodes that can hold a definition. Others are skipped, because a hostile file has very many of them.
_HOLDERS: Final = frozenset(
    (
        *("module", "block", "decorated_definition", *_KINDS),
        *("if_statement", "elif_clause", "else_clause", "for_statement", "while_statement"),
        *("try_statement", "except_clause", "except_group_clause", "finally_clause", "with_statement"),
        *("match_statement", "case_clause"),
    )
)
#: Most characters of a definition's name and of its signature. Nested names repeat the outer ones.
_MAX_NAME, _MAX_SIGNATURE = 1_000, 500
#: Texts whose definitions and first error are kept: an action looks at the file and at its own blocks.
_KEPT_TEXTS: Final = 8


@dataclass(frozen=True, slots=True)
class Definition:
    """A function or class of a file.

    Args:
        name: dotted within the file, e.g. ``Stack.push``.
        kind: ``"def"`` or ``"class"``.
        first_line: 1-based, decorators included.
        last_line: 1-based, inclusive.
        signature: its first line, stripped.
        depth: 0 at module level.
    """

    name: str
    kind: str
    first_line: int
    last_line: int
    signature: str
    depth: int

    def lines(self, source: str) -> str:
        """Return the definition's whole lines from the text that it was found in."""
        return "\n".join(source.split("\n")[self.first_line - 1 : self.last_line])


@dataclass(frozen=True, slots=True)
class SyntaxProblem:
    """A syntax error. Line and column are 1-based; the column counts characters."""

    line: int
    column: int
    message: str


def definitions(source: str) -> list[Definition]:
    r"""Return every function and class in order of appearance, outer before inner.

    >>> [d.name for d in definitions("class A:\n    def f(self): pass\ndef g(): pass\n")]
    ['A', 'A.f', 'g']
    """
    return [*_parsed(source)[0]]


def find(source: str, name: str) -> list[Definition]:
    """Return the definitions with this dotted name, or else those whose name ends in it."""
    _, by_name, by_last_part = _parsed(source)
    return [*(by_name.get(name) or by_last_part.get(name, ()))]


_ByName = Mapping[str, Sequence[Definition]]


@functools.lru_cache(maxsize=_KEPT_TEXTS)
def _parsed(source: str) -> tuple[Sequence[Definition], _ByName, _ByName]:
    """All definitions, then by dotted name, then by the last part of the name. Each text is parsed once."""
    found = _definitions(source)
    by_name: dict[str, list[Definition]] = {}
    by_last_part: dict[str, list[Definition]] = {}
    for item in found:
        by_name.setdefault(item.name, []).append(item)
        by_last_part.setdefault(item.name.rsplit(".", 1)[-1], []).append(item)
    return found, by_name, by_last_part


def _definitions(source: str) -> list[Definition]:
    # A new parser each time: threads cannot share one, and making it takes microseconds.
    parser = Parser(Language(tree_sitter_python.language()))
    lines = source.split("\n")
    found: list[Definition] = []
    # Not recursive, because a long chain of operators nests deeper than Python's stack.
    pending: list[tuple[Node, str, int]] = [(parser.parse(source.encode()).root_node, "", 0)]
    while pending:
        node, prefix, depth = pending.pop()
        named = node.child_by_field_name("name") if node.type in _KINDS else None
        if named is not None:
            parent = node.parent
            outer = parent if parent is not None and parent.type == "decorated_definition" else node
            name = (prefix + (named.text or b"").decode())[:_MAX_NAME]
            signature = lines[node.start_point.row].strip()[:_MAX_SIGNATURE]
            first, last = outer.start_point.row + 1, outer.end_point.row + 1
            found.append(Definition(name, _KINDS[node.type], first, last, signature, depth))
            prefix, depth = f"{name}.", depth + 1
        # A definition may stand anywhere around a syntax error.
        if node.type in _HOLDERS or node.has_error:
            pending += [(child, prefix, depth) for child in reversed(node.named_children)]
    return found


@functools.lru_cache(maxsize=_KEPT_TEXTS)
def syntax_problem(source: str) -> SyntaxProblem | None:
    """Return the first syntax error, or ``None``.

    Found by Python's compiler, not by tree-sitter: Python will run the file, its messages are better, and it
    finds errors that a grammar cannot, such as ``return`` outside a function.
    """
    try:
        compiled(source)
    except SyntaxError as error:
        return SyntaxProblem(error.lineno or 1, max(error.offset or 1, 1), error.msg)
    except (ValueError, RecursionError, MemoryError) as error:
        return SyntaxProblem(1, 1, str(error) or type(error).__name__)
    return None
