"""Find near-duplicate functions across the splits: functions that are equal apart from names."""

from __future__ import annotations

import ast
import builtins
import functools
import io
import tokenize
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from envkit.environments.code_editor.mining.package_functions import package_functions
from envkit.runtime.syntax import parse

#: All runs of `_RUN` consecutive tokens of a function.
Fingerprint: TypeAlias = frozenset[tuple[str, ...]]

#: Functions are near-duplicates if their similarity is above this.
THRESHOLD = 0.8
_RUN = 4
_KEPT = frozenset(dir(builtins))


def fingerprint(function: ast.FunctionDef) -> Fingerprint:
    r"""The token runs of a function without its names, annotations and docstring.

    >>> [one, other] = ast.parse("def f(a): return a + 1\ndef g(x: int): return x + 1").body
    >>> fingerprint(one) == fingerprint(other)
    True
    """
    bare = _Anonymous().visit(parse(ast.unparse(function)).body[0])
    text = ast.unparse(ast.fix_missing_locations(bare))
    found = tokenize.generate_tokens(io.StringIO(text).readline)
    tokens = [token.string.strip() or tokenize.tok_name[token.type] for token in found]
    return frozenset(tuple(tokens[at : at + _RUN]) for at in range(max(1, len(tokens) - _RUN + 1)))


def similarity(one: Fingerprint, other: Fingerprint) -> float:
    """Jaccard index of two fingerprints, from 0 (disjoint) to 1 (equal)."""
    return len(one & other) / len(one | other)


def fingerprints_of(packages: Mapping[str, str]) -> set[Fingerprint]:
    """Fingerprints of the functions of these packages: name -> version.

    Raises:
        UsageError: a package is neither installed nor fetched in that version.
    """
    return {found for package in packages.items() for found in _fingerprints(*package)}


@functools.cache
def _fingerprints(package: str, version: str) -> frozenset[Fingerprint]:
    functions = package_functions(package, version=version)
    return frozenset(fingerprint(other.slice.node) for other in functions)


def is_near(own: Fingerprint, others: Iterable[Fingerprint]) -> bool:
    """True if a function is a near-duplicate of any of the others."""
    return any(similarity(own, other) > THRESHOLD for other in others)


class _Anonymous(ast.NodeTransformer):
    """Replaces every name except builtins by the same placeholder."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if ast.get_docstring(node) is not None and len(node.body) > 1:
            del node.body[0]
        self.generic_visit(node)
        node.name, node.returns, node.decorator_list = "v", None, []
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return node if node.id in _KEPT else ast.Name("v", node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg("v")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.Pass()
        return ast.Assign([self.visit(node.target)], self.visit(node.value), lineno=0)
