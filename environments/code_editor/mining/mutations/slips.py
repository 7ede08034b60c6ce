"""Slips: small changes that leave a function with a syntax error, or with a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterator

from tree_sitter import Node

from envkit.environments.code_editor.mining.mutations.mutate import (
    Mutation,
    function_node,
    is_python,
    mutation_at,
)
from envkit.environments.code_editor.mining.mutations.operators import Replacement, child, text_of

#: Operators of slips: the text no longer parses; or it does, and a name or an attribute is unknown.
SYNTAX, NAME = "syntax", "name"
#: Tokens that are left out.
_LEFT_OUT = {")", "]", "}", "(", "[", "{", "string_end"}
#: Tokens and constants that other languages write differently.
_FOREIGN = {"==": "=", "and": "&&", "or": "||", "not": "!", "elif": "else if"}
_FOREIGN_NAMES = {"none": "null", "true": "true", "false": "false"}
#: Nodes whose last colon opens a block.
_OPENS_BLOCK = {
    "function_definition", "if_statement", "elif_clause", "else_clause", "for_statement", "while_statement",
    "with_statement", "try_statement", "except_clause", "finally_clause",
}  # fmt: skip
_INDENT = 4
#: Shortest name that is misspelt.
_FEWEST_LETTERS = 3


def slips(source: str, function: str) -> list[Mutation]:
    """All slips of a function, ordered by place; the changed texts differ.

    A token is left out or written as in another language, a line is indented wrongly, or a name is misspelt.
    Docstrings, comments and decorators are never changed.

    Args:
        source: a module's text, which parses.
        function: a module-level function, or ``Class.method``.

    Raises:
        ValueError: ``source`` has no such function.
    """
    raw, found = source.encode(), dict[str, Mutation]()
    node = function_node(raw, function)
    changes = {*_tokens(node), *_indents(node, raw)}
    for operator, start, end, new in sorted(changes, key=lambda one: one[1:]):
        slip = mutation_at(raw, operator, start, end, new)
        text = slip.apply(source)
        if text != source and text not in found and is_python(text) == (operator == NAME):
            found[text] = slip
    return list(found.values())


def _tokens(node: Node) -> Iterator[Replacement]:
    for token in _leaves(node):
        kind, parent = token.type, token.parent
        if parent is None:
            continue
        if kind in _LEFT_OUT or (kind == ":" and parent.type in _OPENS_BLOCK):
            yield (SYNTAX, token.start_byte, token.end_byte, "")
        elif kind in _FOREIGN:
            yield (SYNTAX, token.start_byte, token.end_byte, _FOREIGN[kind])
        elif kind in _FOREIGN_NAMES:
            yield (NAME, token.start_byte, token.end_byte, _FOREIGN_NAMES[kind])
        elif kind == "identifier" and not _names(token, parent):
            yield (NAME, token.start_byte, token.end_byte, _misspelt(text_of(token)))


def _leaves(node: Node) -> Iterator[Node]:
    """Yield the tokens of a function, without comments and the texts of its docstring."""
    for inner in node.children:
        if inner.type in ("comment", "type") or _is_docstring(inner):
            continue
        if inner.children:
            yield from _leaves(inner)
        else:
            yield inner


def _is_docstring(node: Node) -> bool:
    return node.type == "expression_statement" and [one.type for one in node.children] == ["string"]


def _names(token: Node, parent: Node) -> bool:
    """True if an identifier gives a name to something, which is not a mistake."""
    if parent.type in ("function_definition", "keyword_argument", "parameters", "default_parameter"):
        return parent.child_by_field_name("value") != token
    if parent.type in ("assignment", "for_statement", "for_in_clause"):
        return child(parent, "left") == token
    return parent.type in ("typed_parameter", "typed_default_parameter", "pattern_list", "lambda_parameters")


def _misspelt(name: str) -> str:
    """Swap the first two inner letters that differ; leave out the last letter if there are none.

    >>> _misspelt("append"), _misspelt("len"), _misspelt("x"), _misspelt("aaa")
    ('apepnd', 'ln', 'x', 'aa')
    """
    if len(name) < _FEWEST_LETTERS:
        return name
    for at in range(1, len(name) - 2):
        if name[at] != name[at + 1]:
            return f"{name[:at]}{name[at + 1]}{name[at]}{name[at + 2 :]}"
    return f"{name[:-2]}{name[-1]}"


def _indents(node: Node, raw: bytes) -> Iterator[Replacement]:
    """Move a line of a body to the left or to the right."""
    for block in _blocks(node):
        for statement in block.named_children:
            start = raw.rfind(b"\n", 0, statement.start_byte) + 1
            margin = raw[start : statement.start_byte]
            if not margin or margin.strip(b" ") or statement.type == "comment" or _is_docstring(statement):
                continue
            for width in (len(margin) - _INDENT, len(margin) + _INDENT, len(margin) - 1):
                if width >= 0:
                    yield (SYNTAX, start, statement.start_byte, " " * width)


def _blocks(node: Node) -> Iterator[Node]:
    for inner in node.named_children:
        if inner.type == "block":
            yield inner
        yield from _blocks(inner)
