"""Make example calls from type hints, for functions whose docstring shows none."""

from __future__ import annotations

import ast

from envkit.environments.code_editor.inputs.call import Call
from envkit.runtime.syntax import parse_expression

_ANY_VALUE = ("3", "'ab'", "[1, 2]", "None")
_BY_HINT = {
    "int": ("3", "0", "10", "7", "1"),
    "float": ("2.5", "0.0", "-1.5", "10.0"),
    "complex": ("1 + 2j", "0j"),
    "bool": ("True", "False"),
    "str": ("'racecar'", "'Hello World'", "'a1b2'", "''", "'abab'"),
    "bytes": ("b'abc'", "b''"),
    "None": ("None",),
    "Any": _ANY_VALUE,
    "object": _ANY_VALUE,
    "Hashable": ("3", "'ab'"),
}
_SEQUENCES = {"list", "List", "Sequence", "Iterable", "Collection", "MutableSequence"}
_SETS = {"set", "Set", "frozenset", "FrozenSet"}
_MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}


def type_hint_calls(function: ast.FunctionDef) -> list[Call]:
    """Make calls that fit the type hints of a function; none if a parameter has no hint or an unknown one."""
    spec = function.args
    required = spec.args[: len(spec.args) - len(spec.defaults)]
    if spec.posonlyargs or spec.vararg or any(default is None for default in spec.kw_defaults):
        return []
    columns = [_values(arg.annotation) for arg in required]
    if not required or not all(columns):
        return []
    rows = max(map(len, columns)) if len(columns) == 1 else 2 * max(map(len, columns))
    # A different stride for each parameter, because otherwise two of them would change in step.
    picked = [
        tuple(column[(row * (2 * index + 1) + index) % len(column)] for index, column in enumerate(columns))
        for row in range(rows)
    ]
    return [Call(args) for args in dict.fromkeys(picked)]


def _values(hint: ast.expr | None) -> tuple[str, ...]:
    """Example values of a type, as source; empty when the type is unknown."""
    match hint:
        case ast.Constant(value=None):
            return ("None",)
        case ast.Constant(value=str(text)):
            try:
                return _values(parse_expression(text))
            except (SyntaxError, ValueError, RecursionError, MemoryError):  # words, such as "list of ints"
                return ()
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _values_of(name, ())
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _values(left) + _values(right)
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=ast.Tuple(elts=inner)):
            return _values_of(name, tuple(inner))
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
            return _values_of(name, (inner,))
        case _:
            return ()


def _values_of(name: str, inner: tuple[ast.expr, ...]) -> tuple[str, ...]:
    if name in _BY_HINT:
        return _BY_HINT[name]
    if name == "Optional":
        return (*_values(inner[0]), "None") if inner else ()
    if name == "Union":
        return tuple(value for one in inner for value in _values(one))
    element = _values(inner[0]) if inner else _BY_HINT["int"]
    if not element:
        return ()
    some = [element[index % len(element)] for index in range(4)]
    if name in _SEQUENCES:
        return (f"[{', '.join(some)}]", f"[{', '.join(reversed(some[:3]))}]", "[]", f"[{some[0]}, {some[0]}]")
    if name in _SETS:
        return (f"{{{', '.join(some)}}}", "set()")
    if name in ("tuple", "Tuple") and inner:
        return _tuples(inner)
    if name in _MAPPINGS:
        return _dicts(some, _values(inner[1]) if len(inner) > 1 else _BY_HINT["int"])
    return ()


def _tuples(inner: tuple[ast.expr, ...]) -> tuple[str, ...]:
    parts = [_values(one) for one in inner if not (isinstance(one, ast.Constant) and one.value is ...)]
    if len(parts) < len(inner):  # `tuple[int, ...]`
        parts = parts * 3
    if not all(parts):
        return ()
    return tuple(f"({', '.join(part[row % len(part)] for part in parts)},)" for row in range(2))


def _dicts(keys: list[str], values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        return ()
    pairs = [f"{key}: {values[row % len(values)]}" for row, key in enumerate(dict.fromkeys(keys))]
    return (f"{{{', '.join(pairs)}}}", f"{{{pairs[0]}}}", "{}")
