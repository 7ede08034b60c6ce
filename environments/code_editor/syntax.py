"""What tree-sitter knows about a Python file: definitions, spans, syntax errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import tree_sitter_python
from tree_sitter import Language, Node, Parser, Tree


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


@dataclass(frozen=True, slots=True)
class SyntaxProblem:
    """Where a file stops being Python. Line and column are 1-based, the column in characters."""

    line: int
    column: int
    message: str


@lru_cache(maxsize=1)
def _parser() -> Parser:
    return Parser(Language(tree_sitter_python.language()))


def _tree(source: str) -> Tree:
    return _parser().parse(source.encode())


def definitions(source: str) -> list[Definition]:
    """Every function and class, outer before inner, in order of appearance.

    >>> [d.name for d in definitions("class A:\\n    def f(self): pass\\ndef g(): pass\\n")]
    ['A', 'A.f', 'g']
    """
    return list(_definitions(_tree(source).root_node, "", 0))


def _definitions(node: Node, prefix: str, depth: int) -> Iterator[Definition]:
    for child in node.named_children:
        outer = child
        inner = child.child_by_field_name("definition") if child.type == "decorated_definition" else child
        if inner is None or inner.type not in ("function_definition", "class_definition"):
            yield from _definitions(child, prefix, depth)
            continue
        named, body = inner.child_by_field_name("name"), inner.child_by_field_name("body")
        if named is None or named.text is None or inner.text is None:
            continue
        name = prefix + named.text.decode()
        kind = "def" if inner.type == "function_definition" else "class"
        signature = inner.text.decode().split("\n", 1)[0].strip()
        yield Definition(
            name, kind, outer.start_point[0] + 1, outer.end_point[0] + 1, signature, depth
        )
        if body is not None:
            yield from _definitions(body, f"{name}.", depth + 1)


def find(source: str, name: str) -> list[Definition]:
    """The definitions of that dotted name, or failing that those whose last part it is."""
    found = definitions(source)
    exact = [item for item in found if item.name == name]
    return exact or [item for item in found if item.name.rsplit(".", 1)[-1] == name]


def syntax_problem(source: str) -> SyntaxProblem | None:
    """The first place where the text is not Python, or ``None``.

    tree-sitter finds the place; ``compile`` has the last word, since tree-sitter accepts some
    programs that Python does not (``return`` outside a function, bad indentation).
    """
    root = _tree(source).root_node
    if root.has_error:
        node = _first_error(root)
        line = source.encode().split(b"\n")[node.start_point[0]]
        column = len(line[: node.start_point[1]].decode(errors="replace")) + 1
        what = f"missing {node.type!r}" if node.is_missing else f"unexpected {_excerpt(node)}"
        return SyntaxProblem(node.start_point[0] + 1, column, what)
    try:
        compile(source, "<edit>", "exec", dont_inherit=True)
    except SyntaxError as error:
        return SyntaxProblem(error.lineno or 1, error.offset or 1, error.msg)
    except (ValueError, RecursionError, MemoryError) as error:
        return SyntaxProblem(1, 1, str(error) or type(error).__name__)
    return None


def _first_error(root: Node) -> Node:
    node = root
    while True:
        worse = next((c for c in node.children if c.has_error or c.is_missing or c.is_error), None)
        if worse is None or node.is_missing:
            return node
        node = worse


def _excerpt(node: Node) -> str:
    text = (node.text or b"").decode(errors="replace").strip().split("\n", 1)[0]
    return repr(text[:40]) if text else "end of text"
