"""Find functions and methods in a module's text."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from envkit.environments.code_editor.mining.duplicates import Fingerprint, fingerprint
from envkit.runtime.syntax import parse


@dataclass(frozen=True, slots=True)
class Function:
    """A function or method in its file.

    Args:
        qualname: ``name``, or ``Class.name``.
        first_line: 1-based, decorators included.
        last_line: 1-based, inclusive.
        text: its lines.
        fingerprint: see `envkit.environments.code_editor.mining.duplicates`.
    """

    qualname: str
    first_line: int
    last_line: int
    text: str
    fingerprint: Fingerprint


def functions(source: str) -> list[Function]:
    r"""Functions at module level and methods of classes, in order; names that are defined twice are left out.

    >>> [one.qualname for one in functions("class A:\n    def f(self): return 1\ndef g(): return 2\n")]
    ['A.f', 'g']

    Raises:
        SyntaxError, ValueError, RecursionError: Python cannot parse the source.
    """
    lines = source.split("\n")
    found = [*_within(parse(source).body, "")]
    counts = Counter(name for name, _ in found)
    return [_function(name, node, lines) for name, node in found if counts[name] == 1]


def _within(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _within(node.body, f"{prefix}{node.name}.")


def _function(name: str, node: ast.FunctionDef, lines: list[str]) -> Function:
    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    last = node.end_lineno or node.lineno
    return Function(name, first, last, "\n".join(lines[first - 1 : last]), fingerprint(node))
