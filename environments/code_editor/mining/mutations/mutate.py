"""Mutate a function: small changes at one place, like mistakes that people make."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import tree_sitter_python
from tree_sitter import Language, Node, Parser

from envkit.environments.code_editor.mining.mutations.operators import (
    changes_of,
    child,
    scope_of,
    text_of,
    walk,
)
from envkit.runtime.syntax import parse

#: All mutation operators, in the order in which `mutations` lists those of one place.
OPERATORS = (
    "comparison",
    "arithmetic",
    "constant",
    "boolean",
    "negation",
    "index",
    "variable",
    "arguments",
    "return",
    "statement",
)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change: ``source[start_byte:end_byte]`` becomes ``replacement``.

    Args:
        operator: one of `OPERATORS`, or of those of `envkit.environments.code_editor.mining.mutations.slips`.
        start_byte: offset in the UTF-8 source.
        end_byte: end of the replaced part, exclusive.
        replacement: new text.
        line: 1-based number of the changed line.
        before_line: the line as it was.
        after_line: the line afterwards, ``""`` if it was removed.
    """

    operator: str
    start_byte: int
    end_byte: int
    replacement: str
    line: int
    before_line: str
    after_line: str

    def apply(self, source: str) -> str:
        """The changed source."""
        raw = source.encode()
        return (raw[: self.start_byte] + self.replacement.encode() + raw[self.end_byte :]).decode()


def mutations(source: str, function: str) -> list[Mutation]:
    """All single-site mutations of a function, ordered by place, then operator.

    Every mutant parses, and all texts differ. Docstrings, annotations, decorators, defaults, strings and
    ``raise`` statements are never changed.

    Args:
        source: a module's text.
        function: a module-level function, or ``Class.method``.

    Raises:
        ValueError: ``source`` has no such function.
    """
    found: dict[str, Mutation] = {}
    for mutation in possible_mutations(source, function):
        text = mutation.apply(source)
        if text != source and text not in found and is_python(text):
            found[text] = mutation
    return list(found.values())


def possible_mutations(source: str, function: str) -> list[Mutation]:
    """Like `mutations`, with some that do not parse and some of equal text: much faster.

    Raises:
        ValueError: ``source`` has no such function.
    """
    raw = source.encode()
    target = function_node(raw, function)
    body = child(target, "body")
    scope = scope_of(target)
    changes = {change for node in walk(body) for change in changes_of(node, scope)}
    order = {name: index for index, name in enumerate(OPERATORS)}
    return [
        mutation_at(raw, operator, start, end, new)
        for operator, start, end, new in sorted(
            changes, key=lambda one: (one[1], one[2], order[one[0]], one[3])
        )
    ]


def function_node(raw: bytes, function: str) -> Node:
    """Return the syntax node of a function in a module's text.

    Raises:
        ValueError: there is no such function.
    """
    found = _function(_parser().parse(raw).root_node, function)
    if found is None:
        kind = "method" if "." in function else "module-level function"
        raise ValueError(f"no {kind} {function!r} in the source")
    return found


def spread(mutations: Sequence[Mutation], count: int, seed: str) -> list[Mutation]:
    """Choose up to ``count`` mutations by seed: operators take turns, each on its least used line."""
    rng = random.Random(seed)
    left = rng.sample(list(mutations), len(mutations))
    # In random order, because otherwise operators with many places would always come first.
    rank = {operator: index for index, operator in enumerate(rng.sample(OPERATORS, len(OPERATORS)))}
    operators, lines = Counter[str](), Counter[int]()
    chosen: list[Mutation] = []
    while left and len(chosen) < count:
        best = min(left, key=lambda one: (operators[one.operator], rank[one.operator], lines[one.line]))
        left.remove(best)
        operators[best.operator] += 1
        lines[best.line] += 1
        chosen.append(best)
    return chosen


def mutation_at(raw: bytes, operator: str, start: int, end: int, new: str) -> Mutation:
    """Make the mutation that replaces ``raw[start:end]``, in a module's UTF-8 text, by ``new``."""
    first = raw.rfind(b"\n", 0, start) + 1
    last = raw.find(b"\n", max(start, end - 1))
    last = len(raw) if last < 0 else last
    after = raw[first:start] + new.encode() + raw[end:last]
    return Mutation(
        operator=operator,
        start_byte=start,
        end_byte=end,
        replacement=new,
        line=raw.count(b"\n", 0, first) + 1,
        before_line=raw[first:last].decode(),
        after_line=after.decode(),
    )


def is_python(text: str) -> bool:
    """True if Python can parse a module's text."""
    try:
        parse(text)
    except SyntaxError:
        return False
    return True


@cache
def _parser() -> Parser:
    return Parser(Language(tree_sitter_python.language()))


def _function(root: Node, name: str) -> Node | None:
    *classes, last = name.split(".")
    place: Node | None = root
    for wanted in classes:
        found = _defined(place, "class_definition", wanted) if place else None
        place = child(found, "body") if found else None
    return _defined(place, "function_definition", last) if place else None


def _defined(place: Node, kind: str, name: str) -> Node | None:
    for top in place.children:
        node = top.child_by_field_name("definition") if top.type == "decorated_definition" else top
        if node and node.type == kind and text_of(child(node, "name")) == name:
            return node
    return None
