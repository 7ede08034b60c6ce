"""Mutation operators: the changes that each kind of syntax node allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from tree_sitter import Node

#: Operator, first byte, end byte, new text.
Replacement: TypeAlias = tuple[str, int, int, str]

_COMPARISONS = {
    "<": ("<=", ">"),
    "<=": ("<", ">="),
    ">": (">=", "<"),
    ">=": (">", "<="),
    "==": ("!=",),
    "!=": ("==",),
    "in": ("not in",),
    "not in": ("in",),
    "is": ("is not",),
    "is not": ("is",),
}
_ARITHMETIC = {
    "+": ("-",),
    "-": ("+",),
    "*": ("+", "//"),
    "/": ("//", "*"),
    "//": ("/", "%"),
    "%": ("//",),
    "**": ("*",),
    "<<": (">>",),
    ">>": ("<<",),
    "&": ("|",),
    "|": ("&",),
    "^": ("|",),
}
_SIMPLE = ("identifier", "attribute", "subscript", "call", "integer", "float", "string")
#: Nodes that are never mutated, because a change there is not visible or does not affect behaviour.
_SKIPPED = {
    "decorator", "type", "parameters", "lambda_parameters", "raise_statement", "assert_statement", "string",
    "comment", "import_statement", "import_from_statement", "except_clause", "global_statement",
    "nonlocal_statement", "class_definition",
}  # fmt: skip
#: Calls whose arguments have fixed types: swapping them always fails.
_FIXED_ROLES = {"isinstance", "issubclass", "getattr", "hasattr", "setattr", "print", "map", "filter", "cast"}
#: Longest statement to remove, in bytes. Nobody could restore a longer one.
_MAX_DROPPED = 36


def child(node: Node, field: str) -> Node:
    """The child in a field that the grammar always fills."""
    found = node.child_by_field_name(field)
    if found is None:
        raise ValueError(f"a {node.type} without {field}")
    return found


def text_of(node: Node) -> str:
    """The source of a node."""
    return (node.text or b"").decode()


def walk(node: Node) -> Iterator[Node]:
    """Yield descendants in source order, without nodes that are never mutated."""
    for inner in node.named_children:
        if inner.type not in _SKIPPED:
            yield inner
            yield from walk(inner)


@dataclass(frozen=True, slots=True)
class LocalName:
    """A local name: the byte from which it is bound, and True if it is used as a collection or object."""

    since: int
    container: bool


def scope_of(target: Node) -> dict[str, LocalName]:
    """Local names of a function: parameters, assigned names and loop variables."""
    names: dict[str, int] = {}
    for param in child(target, "parameters").named_children:
        for node in [param, *param.named_children][:2]:
            if node.type == "identifier":
                names.setdefault(text_of(node), target.start_byte)
    for node in walk(child(target, "body")):
        if node.type in ("assignment", "for_statement"):
            left = child(node, "left")
            since = node.end_byte if node.type == "assignment" else child(node, "body").start_byte
            for name in [left, *left.named_children]:
                if name.type == "identifier" and (name is left or left.type == "pattern_list"):
                    names.setdefault(text_of(name), since)
    containers = {text_of(node) for node in walk(child(target, "body")) if _is_container(node)}
    return {name: LocalName(since, name in containers) for name, since in names.items()}


def _is_container(node: Node) -> bool:
    """True if a name is used here in a way that only collections and objects allow."""
    parent = node.parent
    if node.type != "identifier" or parent is None:
        return False
    fields = {"subscript": "value", "attribute": "object", "for_statement": "right", "for_in_clause": "right"}
    if parent.type == "argument_list" and parent.parent and parent.parent.type == "call":
        return text_of(child(parent.parent, "function")) in ("len", "enumerate", "iter", "sorted", "reversed")
    return parent.type in fields and fields[parent.type] == _role(node, parent)


def _role(node: Node, parent: Node) -> str | None:
    """The field of ``parent`` that ``node`` fills."""
    places = [at for at, other in enumerate(parent.children) if other.id == node.id]
    return parent.field_name_for_child(places[0])


def changes_of(node: Node, scope: dict[str, LocalName]) -> Iterator[Replacement]:
    """Yield every change that starts at this node."""
    kind = node.type
    if kind == "identifier":
        yield from _wrong_variable(node, scope)
    elif kind in _BY_TYPE:
        for rule in _BY_TYPE[kind]:
            yield from rule(node)
    if kind.endswith("_statement"):
        yield from _dropped(node, scope)


def _comparison(node: Node) -> Iterator[Replacement]:
    for operator in node.children_by_field_name("operators"):
        for new in _COMPARISONS.get(text_of(operator), ()):
            yield ("comparison", operator.start_byte, operator.end_byte, new)


def _arithmetic(node: Node) -> Iterator[Replacement]:
    left, right = child(node, "left"), child(node, "right")
    operator = child(node, "operator")
    suffix = "=" if node.type == "augmented_assignment" else ""
    textual = any(
        side.type in ("string", "list", "concatenated_string", "list_comprehension") for side in (left, right)
    )
    for new in () if textual else _ARITHMETIC.get(text_of(operator).removesuffix(suffix or "\0"), ()):
        yield ("arithmetic", operator.start_byte, operator.end_byte, new + suffix)
    if text_of(operator) in ("-", "/", "//", "%", "**") and left.type in _SIMPLE and right.type in _SIMPLE:
        yield (
            "arguments",
            left.start_byte,
            right.end_byte,
            f"{text_of(right)} {text_of(operator)} {text_of(left)}",
        )


def _constant(node: Node) -> Iterator[Replacement]:
    parent = node.parent
    if parent and parent.type in ("subscript", "slice", "unary_operator"):
        return  # an index or a sign, which the index operator changes
    value = _integer(text_of(node))
    if value is None:
        return
    yield ("constant", node.start_byte, node.end_byte, str(value + 1))
    if value:
        yield ("constant", node.start_byte, node.end_byte, str(value - 1))


def _integer(text: str) -> int | None:
    """The value of an integer literal with its sign; ``None`` for ``2j`` and ``~0``."""
    try:
        return int(text, 0)
    except ValueError:
        return None


def _truth(node: Node) -> Iterator[Replacement]:
    yield ("boolean", node.start_byte, node.end_byte, "False" if node.type == "true" else "True")


def _boolean(node: Node) -> Iterator[Replacement]:
    operator = child(node, "operator")
    yield ("boolean", operator.start_byte, operator.end_byte, "or" if text_of(operator) == "and" else "and")


def _condition(node: Node) -> Iterator[Replacement]:
    if node.type == "conditional_expression":
        condition = node.named_children[1]
    else:
        condition = node.child_by_field_name("condition") or node.named_children[0]
    if condition.type in ("identifier", "call", "attribute", "subscript", "binary_operator"):
        text = text_of(condition)
        new = f"not ({text})" if condition.type == "binary_operator" else f"not {text}"
        yield ("negation", condition.start_byte, condition.end_byte, new)


def _not(node: Node) -> Iterator[Replacement]:
    argument = child(node, "argument")
    yield ("negation", node.start_byte, argument.start_byte, "")


def _index(node: Node) -> Iterator[Replacement]:
    for place in node.children_by_field_name("subscript"):
        if place.type == "slice":
            for bound in place.named_children:
                yield from _off_by_one(bound)
        else:
            yield from _off_by_one(place)


def _off_by_one(node: Node) -> Iterator[Replacement]:
    text = text_of(node)
    start, end = node.start_byte, node.end_byte
    signed = node.type == "unary_operator" and text[1:].isdigit()
    if node.type == "integer" or signed:
        value = _integer(text)
        if value is None:
            return
        yield ("index", start, end, str(value + 1))
        if value:
            yield ("index", start, end, str(value - 1))
    elif node.type in ("identifier", "attribute", "call"):
        yield ("index", start, end, f"{text} + 1")
        yield ("index", start, end, f"{text} - 1")
    elif node.type == "binary_operator" and text_of(child(node, "right")) == "1":
        left = child(node, "left")
        yield ("index", left.end_byte, end, "")


def _call(node: Node) -> Iterator[Replacement]:
    arguments = child(node, "arguments")
    function = text_of(child(node, "function"))
    given = [arg for arg in arguments.named_children if arg.type not in ("keyword_argument", "comment")]
    if arguments.type != "argument_list" or any(arg.type.endswith("splat") for arg in given):
        return
    if function == "range":
        for bound in given[:2]:
            if bound.type != "integer":
                yield from _off_by_one(bound)
    if function not in _FIXED_ROLES:
        for one, other in pairwise(given):
            between = (node.text or b"")[one.end_byte - node.start_byte : other.start_byte - node.start_byte]
            new = text_of(other) + between.decode() + text_of(one)
            yield ("arguments", one.start_byte, other.end_byte, new)


def _loop(node: Node) -> Iterator[Replacement]:
    """Move a ``return`` that follows a loop into it, which ends the loop early."""
    following, body = node.next_named_sibling, node.child_by_field_name("body")
    if following is None or body is None or following.type != "return_statement":
        return
    if following.start_point.column == node.start_point.column < body.start_point.column:
        start = following.start_byte - following.start_point.column
        yield ("return", start, following.start_byte, " " * body.start_point.column)


def _jump(node: Node) -> Iterator[Replacement]:
    new = "continue" if node.type == "break_statement" else "break"
    yield ("return", node.start_byte, node.end_byte, new)


def _wrong_variable(node: Node, scope: dict[str, LocalName]) -> Iterator[Replacement]:
    name, parent = text_of(node), node.parent
    if name not in scope or parent is None or not _is_read(node, parent):
        return
    for other, known in sorted(scope.items()):
        # A number instead of a list fails at once, which is not a realistic bug.
        alike = known.container == scope[name].container
        if other != name and alike and known.since <= node.start_byte and other != "_":
            yield ("variable", node.start_byte, node.end_byte, other)


def _is_read(node: Node, parent: Node) -> bool:
    written = {
        "assignment": "left",
        "augmented_assignment": "left",
        "for_statement": "left",
        "for_in_clause": "left",
        "attribute": "attribute",
        "keyword_argument": "name",
        "call": "function",
        "named_expression": "name",
        "function_definition": "name",
    }
    binding = ("pattern_list", "tuple_pattern", "as_pattern_target", "list_splat_pattern", "dictionary_splat")
    return written.get(parent.type, "?") != _role(node, parent) and parent.type not in binding


def _dropped(node: Node, scope: dict[str, LocalName]) -> Iterator[Replacement]:
    parent = node.parent
    if parent is None or parent.type != "block" or node.start_point.row != node.end_point.row:
        return
    if node.end_byte - node.start_byte > _MAX_DROPPED:
        return
    if node.type == "expression_statement":
        inner = node.named_children[0]
        if inner.type == "assignment" and not _rebinds(inner, scope):
            return  # the name would be unbound
        if inner.type in ("string", "ellipsis"):
            return
    elif node.type not in ("continue_statement", "break_statement"):
        return
    siblings = [child for child in parent.named_children if child.type != "comment"]
    if len(siblings) == 1:
        yield ("statement", node.start_byte, node.end_byte, "pass")
    elif all(other.start_point.row != node.start_point.row for other in siblings if other.id != node.id):
        # Remove the whole line, because a blank line would mark the place.
        yield ("statement", node.start_byte - node.start_point.column, _next_line(node), "")


def _next_line(node: Node) -> int:
    """Byte where the line after ``node`` begins."""
    root = node
    while root.parent:
        root = root.parent
    raw = root.text or b""
    end = raw.find(b"\n", node.end_byte)
    return len(raw) if end < 0 else end + 1


def _rebinds(assignment: Node, scope: dict[str, LocalName]) -> bool:
    left = child(assignment, "left")
    names = [left, *left.named_children] if left.type in ("identifier", "pattern_list") else []
    return all(
        text_of(name) in scope and scope[text_of(name)].since < assignment.start_byte
        for name in names
        if name.type == "identifier"
    )


_BY_TYPE: dict[str, tuple[Callable[[Node], Iterator[Replacement]], ...]] = {
    "comparison_operator": (_comparison,),
    "binary_operator": (_arithmetic,),
    "augmented_assignment": (_arithmetic,),
    "integer": (_constant,),
    "true": (_truth,),
    "false": (_truth,),
    "boolean_operator": (_boolean,),
    "not_operator": (_not,),
    "if_statement": (_condition,),
    "elif_clause": (_condition,),
    "if_clause": (_condition,),
    "conditional_expression": (_condition,),
    "subscript": (_index,),
    "call": (_call,),
    "for_statement": (_loop,),
    "while_statement": (_loop,),
    "break_statement": (_jump,),
    "continue_statement": (_jump,),
}
