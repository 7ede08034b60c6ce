"""Analyse a module's source: names that it binds, and names that its statements need."""

from __future__ import annotations

import ast
import symtable
from dataclasses import dataclass
from typing import final

from envkit.runtime.syntax import parse


@dataclass(frozen=True, slots=True)
class Import:
    """The source of an imported name: a module, and for ``from`` imports an attribute of it."""

    module: str
    attribute: str | None


@final
class Module:
    """The top-level bindings of one module.

    Attributes:
        name: dotted name.
        lines: source lines.
        imports: local name -> its source.
        stars: modules imported with ``*``.
        statements: local name -> statements that bind it, without overloads and ``TYPE_CHECKING`` blocks.
    """

    def __init__(self, name: str, source: str, is_package: bool) -> None:
        self.name = name
        self.lines = source.split("\n")
        self.imports: dict[str, Import] = {}
        self.stars: list[str] = []
        self.statements: dict[str, list[ast.stmt]] = {}
        self._package = name if is_package else name.rpartition(".")[0]
        for statement in parse(source).body:
            self._bind(statement)

    def _bind(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self._bind_import(statement)
        elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            if not any("overload" in ast.unparse(one) for one in statement.decorator_list):
                self.statements.setdefault(statement.name, []).append(statement)
        elif not (isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)):
            for name in bound_names(statement):
                self.statements.setdefault(name, []).append(statement)

    def _bind_import(self, statement: ast.Import | ast.ImportFrom) -> None:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                target = alias.name if alias.asname else alias.name.partition(".")[0]
                self.imports[alias.asname or target] = Import(target, None)
            return
        source = absolute(statement, self._package)
        for alias in statement.names:
            if alias.name == "*":
                self.stars.append(source)
            else:
                self.imports[alias.asname or alias.name] = Import(source, alias.name)


def absolute(statement: ast.ImportFrom, package: str) -> str:
    """Absolute name of the module that a statement imports from; a leading dot means ``package``."""
    if not statement.level:
        return statement.module or ""
    base = package.split(".")[: len(package.split(".")) - statement.level + 1]
    return ".".join([*base, *([statement.module] if statement.module else [])])


def bound_names(statement: ast.stmt) -> set[str]:
    """Names that a top-level statement binds, also inside compound statements."""
    table = symtable.symtable(ast.unparse(statement), "<statement>", "exec")
    symbols = table.get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


class _WithoutAnnotations(ast.NodeTransformer):
    """Removes annotations, which ``from __future__ import annotations`` leaves unevaluated."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.Assign([node.target], self.visit(node.value), lineno=node.lineno)


def free_names(statement: ast.stmt) -> set[str]:
    """Module-level names that a statement needs when it is executed or called."""
    bare = _WithoutAnnotations().visit(parse(ast.unparse(statement)))
    pending = [symtable.symtable(ast.unparse(bare), "<statement>", "exec")]
    found: set[str] = set()
    while pending:
        table = pending.pop()
        pending += table.get_children()
        top = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or (top and not symbol.is_assigned())):
                found.add(symbol.get_name())
    return found


def annotation_names(statement: ast.stmt) -> set[str]:
    """Names in the annotations of a statement."""
    roots: list[ast.AST | None] = []
    for node in ast.walk(statement):
        if isinstance(node, ast.arg | ast.AnnAssign):
            roots.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            roots.append(node.returns)
    return {name.id for root in roots if root for name in ast.walk(root) if isinstance(name, ast.Name)}


def source_of(home: Module, statement: ast.stmt) -> str:
    """The lines of a top-level statement, decorators included."""
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(one.lineno for one in decorators)])
    return "\n".join(home.lines[first - 1 : statement.end_lineno])
