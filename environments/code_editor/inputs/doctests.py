"""Extract example calls from docstrings and test code."""

from __future__ import annotations

import ast
import copy
import doctest
import importlib
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, final

from envkit.environments.code_editor.inputs.call import Call
from envkit.runtime.syntax import parse

#: Errors of `parse`: words that are no source, or too much of it.
_NO_SOURCE: Final = (SyntaxError, ValueError, RecursionError, MemoryError)

#: Standard-library modules that arguments may use.
ARGUMENT_MODULES = (
    "collections", "decimal", "fractions", "functools", "itertools", "math", "operator", "re", "string",
)  # fmt: skip
_CALLABLE_IN_ARGUMENTS = frozenset(
    {
        *("bytes", "complex", "dict", "float", "frozenset", "int", "iter", "list", "range", "reversed"),
        *("set", "slice", "str", "tuple"),
    }
)
_ARGUMENT_BUILTINS = _CALLABLE_IN_ARGUMENTS | {
    *("abs", "all", "any", "bool", "chr", "divmod", "enumerate", "filter", "isinstance", "len", "map"),
    *("max", "min", "ord", "pow", "repr", "round", "sorted", "sum", "zip"),
    *("ArithmeticError", "IndexError", "KeyError", "TypeError", "ValueError", "ZeroDivisionError"),
}
#: Functions whose result does not depend on the order of their argument.
_REORDERING = ("sorted", "set", "frozenset", "Counter")
_LITERALS = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.BinOp)
_LAMBDA_BODY = (
    *_LITERALS, ast.Compare, ast.BoolOp, ast.IfExp, ast.Subscript, ast.Slice, ast.Starred, ast.Lambda,
    ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.expr_context, ast.keyword,
)  # fmt: skip


def docstring_calls(docstring: str, function: str) -> list[Call]:
    """Extract the calls of ``function`` from a docstring's examples, in order, without duplicates.

    Names from earlier simple assignments in the docstring are replaced by their values. A call is left out if
    an argument is not a closed expression of literals, lambdas, builtins and standard-library attributes.
    """
    bound: dict[str, ast.expr] = {}
    found: list[Call] = []
    for statement in _statements(docstring, function):
        found += _calls(statement, function, bound)
        _bind(statement, bound)
    return list({call.source(function): call for call in found}.values())


def is_always_reordered(docstring: str, function: str) -> bool:
    r"""True if every example sorts the answer or makes a set of it: then its own order has no meaning.

    >>> is_always_reordered(">>> sorted(pairs([1, 2]))\n[(1, 2)]", "pairs")
    True
    """
    nodes = [node for statement in _statements(docstring, function) for node in ast.walk(statement)]
    asked = {node for node in nodes if isinstance(node, ast.Call) and name_called(node) == function}
    reordered: set[ast.expr] = set()
    for node in nodes:
        if isinstance(node, ast.Call) and node.args and name_called(node) in _REORDERING:
            [inner, *_] = node.args
            match inner:
                case ast.Call(args=[listed]) if name_called(inner) in ("list", "tuple"):
                    reordered.add(listed)
                case _:
                    reordered.add(inner)
    return bool(asked) and asked <= reordered


def name_called(call: ast.Call) -> str:
    """Name of the function or method that a call calls; empty if it has none."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def modules_of(calls: Iterable[Call]) -> tuple[str, ...]:
    """The standard-library modules that the arguments of these calls use."""
    named: set[str] = set()
    for call in calls:
        for source in (*call.args, *call.kwargs.values()):
            named |= {node.id for node in ast.walk(parse(source)) if isinstance(node, ast.Name)}
    return tuple(name for name in ARGUMENT_MODULES if name in named)


def calls_in(statements: Sequence[ast.stmt], function: str) -> list[Call]:
    """Find all calls of ``function`` with closed arguments in these statements, without duplicates."""
    found = [call for statement in statements for call in _calls(statement, function, {})]
    return list({call.source(function): call for call in found}.values())


def _statements(docstring: str, function: str) -> Iterator[ast.stmt]:
    try:
        examples = doctest.DocTestParser().get_examples(docstring)
    except ValueError:  # inconsistent indentation: no examples then
        examples = []
    for example in examples:
        try:
            yield from parse(textwrap.dedent(example.source)).body
        except _NO_SOURCE:
            continue
    if not examples:
        yield from _written_calls(docstring, function)


def _written_calls(docstring: str, function: str) -> Iterator[ast.stmt]:
    """Calls in prose, such as ``add(1, 2) == 3`` or ``add(1, 2) -> 3``."""
    for match in re.finditer(rf"\b{re.escape(function)}\(", docstring):
        for end in range(match.end(), min(len(docstring), match.end() + 200)):
            if docstring[end] != ")":
                continue
            try:
                yield from parse(docstring[match.start() : end + 1]).body
                break
            except _NO_SOURCE:
                continue


def _bind(statement: ast.stmt, bound: dict[str, ast.expr]) -> None:
    """Record simple assignments and imports; any other binding makes a name unknown."""
    if isinstance(statement, ast.ImportFrom) and statement.module in ARGUMENT_MODULES:
        for alias in statement.names:
            owner = ast.Name(statement.module, ast.Load())
            bound[alias.asname or alias.name] = ast.Attribute(owner, alias.name, ast.Load())
    elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        value = _closed(statement.value, bound)
        if value is None or len(statement.targets) > 1:
            bound.pop(statement.targets[0].id, None)
        else:
            bound[statement.targets[0].id] = value
    elif isinstance(statement, ast.FunctionDef) and isinstance(statement.body[-1], ast.Return):
        only = statement.body[-1].value if len(statement.body) == 1 and not statement.decorator_list else None
        value = _closed(ast.Lambda(statement.args, only), bound) if only else None
        if value is None:
            bound.pop(statement.name, None)
        else:
            bound[statement.name] = value
    else:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                bound.pop(node.id, None)


def _calls(statement: ast.stmt, function: str, bound: dict[str, ast.expr]) -> Iterator[Call]:
    for node in ast.walk(statement):
        if not isinstance(node, ast.Call):
            continue
        named = node.func.id if isinstance(node.func, ast.Name) else None
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            named = node.func.attr if node.func.value.id not in bound else None
        if named != function:
            continue
        args = [_closed(arg, bound) for arg in node.args]
        kwargs = {one.arg: _closed(one.value, bound) for one in node.keywords}
        sources = [ast.unparse(arg) for arg in args if arg is not None]
        named_sources = {key: ast.unparse(arg) for key, arg in kwargs.items() if key and arg is not None}
        if len(sources) == len(args) and len(named_sources) == len(node.keywords):
            yield Call(tuple(sources), named_sources)


def _closed(expression: ast.expr, bound: dict[str, ast.expr]) -> ast.expr | None:
    """The expression with bound names replaced, or ``None`` if it still has free names."""
    replaced = _Substitute(bound).visit(copy.deepcopy(expression))
    return replaced if _is_closed(replaced, frozenset(), inside_lambda=False) else None


@final
class _Substitute(ast.NodeTransformer):
    """Replaces known names by their values; lambda parameters shadow names."""

    def __init__(self, bound: dict[str, ast.expr]) -> None:
        self._bound = bound

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return copy.deepcopy(self._bound.get(node.id, node))

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        hidden = _parameters(node.args)
        inner = {name: value for name, value in self._bound.items() if name not in hidden}
        return ast.Lambda(node.args, _Substitute(inner).visit(node.body))


def _parameters(arguments: ast.arguments) -> set[str]:
    return {node.arg for node in ast.walk(arguments) if isinstance(node, ast.arg)}


def _is_closed(node: ast.AST, params: frozenset[str], *, inside_lambda: bool) -> bool:
    def each(nodes: Iterable[ast.AST]) -> bool:
        return all(_is_closed(one, params, inside_lambda=inside_lambda) for one in nodes)

    match node:
        case ast.Constant():
            return node.value is not Ellipsis
        case ast.Name():
            return node.id in params or node.id in _ARGUMENT_BUILTINS
        case ast.Lambda():
            names = params | _parameters(node.args)
            return _is_closed(node.body, frozenset(names), inside_lambda=True)
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in ARGUMENT_MODULES:
            return hasattr(importlib.import_module(name), attribute)
        case ast.Attribute(value=ast.Name(id="str" | "int" | "float" | "list" | "dict" | "set" | "bytes")):
            return True
        case ast.Attribute():
            return inside_lambda and node.attr[0] != "_" and each([node.value])
        case ast.Call(func=ast.Name(id=name)) if not inside_lambda:
            return name in _CALLABLE_IN_ARGUMENTS and each([*node.args, *node.keywords])
        case ast.Call():
            stdlib = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
            return (inside_lambda or stdlib) and each([node.func, *node.args, *node.keywords])
        case ast.keyword():
            return node.arg is not None and each([node.value])
        case _:
            pass
    kinds = _LAMBDA_BODY if inside_lambda else (*_LITERALS, ast.operator, ast.unaryop, ast.expr_context)
    return isinstance(node, kinds) and each(ast.iter_child_nodes(node))
