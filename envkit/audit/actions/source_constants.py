"""Constants in the source of an environment's package: an author may have left a magic word among them."""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from envkit.audit.canonical_source import parse
from envkit.audit.code_digest import package_files
from envkit.env import Env

#: Longest text that an action could be compared with.
_MAX_CHARS: Final = 100
#: Methods that compare a text with their argument.
_COMPARING: Final = frozenset(
    {
        "count",
        "endswith",
        "find",
        "fullmatch",
        "get",
        "index",
        "match",
        "removeprefix",
        "search",
        "startswith",
    }
)
_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]{2,}")

Constant = str | int | float


def modules_of(kind: type[Env]) -> list[Path]:
    """The Python files of the packages of a class and its bases; the class's own file first."""
    bases = [base for base in kind.__mro__ if issubclass(base, Env) and base is not Env]
    own = [Path(inspect.getfile(base)).resolve() for base in bases]
    others = sorted(
        path for base in bases for _, path in package_files(base) if path.suffix == ".py" and path not in own
    )
    return [*dict.fromkeys([*own, *others])]


def source_constants(kind: type[Env]) -> list[Constant]:
    """Texts and numbers in the Python files of an environment's package, docstrings left out.

    Those that something is compared with come first, then those in collections, then the others; within each
    group, those of the class's own module come first.
    """
    ranked: dict[tuple[type, Constant], int] = {}
    for path in modules_of(kind):
        if (tree := parse(path.read_bytes())) is not None:
            for rank, value in _ranked(tree):
                key = type(value), value
                ranked[key] = min(rank, ranked.get(key, rank))
    return [value for _, value in sorted(ranked, key=lambda key: ranked[key])]


#: Beginnings of names of folders and libraries. Set to nonsense, they break a process, or litter this one's.
_FOLDERS: Final = ("XDG_", "LD_", "PYTHON", "TMP", "TEMP", "HOME", "PATH")


def variable_names(constants: Sequence[Constant]) -> list[str]:
    """Constants that may be names of environment variables, and are none of this process."""
    return [
        each
        for each in constants
        if isinstance(each, str)
        and _VARIABLE.fullmatch(each)
        and each not in os.environ
        and not each.startswith(_FOLDERS)
    ]


def _ranked(tree: ast.Module) -> Iterator[tuple[int, Constant]]:
    """Each constant of a module, with 0 if it is compared, 1 if it is in a collection, else 2."""
    # Each node with the rank of the constants below it.
    waiting: list[tuple[ast.AST, int]] = [(tree, 2)]
    while waiting:
        node, rank = waiting.pop()
        match node:
            case ast.Expr(value=ast.Constant()):  # a docstring
                continue
            case ast.Constant(value=str(value)):
                if value.strip() and len(value) <= _MAX_CHARS and value.isprintable():
                    yield rank, value
            case ast.Constant(value=int(value) | float(value)):
                if value not in (0, 1):  # True and False too
                    yield rank, value
            case ast.Compare() | ast.MatchValue():
                rank = 0
            case ast.Call(func=ast.Attribute(attr=name)) if name in _COMPARING:
                rank = 0
            case ast.Set() | ast.List() | ast.Tuple() | ast.Dict():
                rank = min(rank, 1)
            case ast.JoinedStr() | ast.Raise():
                rank = 2
            case _:
                pass
        waiting += [(child, rank) for child in reversed([*ast.iter_child_nodes(node)])]
