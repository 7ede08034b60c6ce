"""Rules of the code base that a parser can check: allowed imports and lazy loading."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]

#: The drawing that these tests enforce: a line for each floor, and for each group of siblings.
DRAWING = (ROOT / "docs" / "concepts" / "architecture.md").read_text()

#: From lowest to highest: a part imports lower floors only.
#: "envkit" is the package's own ``__init__``.
LAYERS = tuple(tuple(parts.split()) for parts in re.findall(r"^\d+: (.+)$", DRAWING, re.MULTILINE))
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

#: Parts that do not import each other.
SIBLINGS = tuple(tuple(parts.split()) for parts in re.findall(r"^siblings: (.+)$", DRAWING, re.MULTILINE))

#: ``import envkit`` offers names that stand to its right; it loads them when they are first used.
LOADED_ON_USE = ("envkit.runs", "envkit.measure.spec", "envkit.training.config")

#: Slow to import and missing in a plain install. Studies depend on training and load only with it.
HEAVY = {"peft", "torch", "transformers", "trl"}
MAY_LOAD_HEAVY = {"engine", "runs", "studies", "training"}


class Module(NamedTuple):
    """A source file: its path, its module name, and its syntax tree."""

    path: str
    name: str
    tree: ast.Module


def sources() -> Iterator[Module]:
    for package, folder in SETUPTOOLS["package-dir"].items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *inner)).removesuffix(".__init__")
            yield Module(str(path.relative_to(ROOT)), name, ast.parse(path.read_bytes()))


MODULES = tuple(sources())
NAMES = {module.name for module in MODULES}


def part_of(name: str) -> str:
    """``envkit.training.learner.loss`` -> ``training``; ``envkit`` -> ``envkit``."""
    return name.removeprefix("envkit.").partition(".")[0]


def imports(node: ast.AST, *, lazy: bool) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import under a node; ``lazy`` includes those inside functions."""
    match node:
        case ast.Import(names=aliases):
            yield from ((node.lineno, alias.name) for alias in aliases)
        case ast.ImportFrom(names=aliases):
            module = "." * node.level + (node.module or "")
            for inner in (f"{module}.{alias.name}" for alias in aliases):
                yield node.lineno, inner if inner in NAMES else module
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.If(test=ast.Name("TYPE_CHECKING")) if not lazy:
            return
        case _:
            for child in ast.iter_child_nodes(node):
                yield from imports(child, lazy=lazy)


def forbidden(module: Module) -> list[str]:
    """Return the module's forbidden imports, one sentence each."""
    part = part_of(module.name)
    if part not in RANK:
        return [f"{module.path}: {part} has no place in LAYERS"]
    found: list[str] = []
    for line, name in imports(module.tree, lazy=True):
        where = f"{module.path}:{line}"
        top = name.partition(".")[0]
        if top in ("", "agents", "environments", "sandboxes"):
            found.append(f"{where} imports {name}; write envkit.{name.lstrip('.')}")
        elif top == "envkit" and not (part == "envkit" and f"{name}.".startswith(LOADED_ON_USE)):
            other = part_of(name)
            siblings = part != other and any(part in group and other in group for group in SIBLINGS)
            if siblings or (other != part and RANK.get(other, len(LAYERS)) >= RANK[part]):
                found.append(f"{where}: {part} imports {name}")
    if part not in MAY_LOAD_HEAVY:
        for line, name in imports(module.tree, lazy=False):
            if name.partition(".")[0] in HEAVY:
                found.append(f"{module.path}:{line} loads {name} at import time; import it where it is used")
    return found


@pytest.mark.parametrize("module", MODULES, ids=[module.path for module in MODULES])
def test_a_module_imports_only_lower_floors(module: Module) -> None:
    assert forbidden(module) == []


@pytest.mark.parametrize("module", MODULES, ids=[module.path for module in MODULES])
def test_a_module_has_a_docstring(module: Module) -> None:
    assert ast.get_docstring(module.tree)


def test_parts_have_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        part = part_of(module.name)
        named = [
            name
            for _, name in imports(module.tree, lazy=True)
            if not (part == "envkit" and f"{name}.".startswith(LOADED_ON_USE))
        ]
        graph.setdefault(part, set()).update(part_of(n) for n in named if n.partition(".")[0] == "envkit")
        graph[part].discard(part)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_package_is_shipped() -> None:
    packages = {module.name for module in MODULES if module.path.endswith("__init__.py")}
    folders = {str(Path(module.path).parent) for module in MODULES}
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages)
    assert len(folders) == len(packages), "a folder with modules has no __init__.py"


def test_every_error_is_in_the_tree_of_the_errors_docstring() -> None:
    """Errors are found by the names of their bases, without importing modules."""
    classes = [
        (module, node)
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    ]
    known: set[str] = {"EnvkitError"}
    while True:
        derived = [(m, n) for m, n in classes if known & {ast.unparse(base) for base in n.bases}]
        if {node.name for _, node in derived} <= known:
            break
        known |= {node.name for _, node in derived}
    assert {"BrokenTask", "ProviderError", "ServerSilent"} <= known
    tree = next(str(ast.get_docstring(module.tree)) for module in MODULES if module.name == "envkit.errors")
    for module, node in derived:
        name = f"─ {node.name} " if module.name == "envkit.errors" else f"`{module.name}.{node.name}`"
        assert name in tree, f"{module.path}:{node.lineno}"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("envkit.errors", "from envkit.runtime.store import RunFolder"),
        ("envkit.env", "def late():\n    from envkit import registry"),
        ("envkit.agents.local", "import envkit.environments.code_editor.env"),
        ("envkit.measure.evaluation", "from envkit.training import grpo"),
        ("envkit.cli.main", "from agents.local import LocalAgent"),
        ("envkit.cli.main", "from . import ui"),
        ("envkit.models", "try:\n    import torch\nexcept ImportError:\n    pass"),
        ("envkit.agents.local", "from transformers import AutoTokenizer"),
        ("envkit.placeless", ""),
    ],
)
def test_forbidden_imports_are_found(name: str, source: str) -> None:
    assert len(forbidden(Module("example.py", name, ast.parse(source)))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("envkit.cli.main", "from envkit.env import registry\nfrom envkit.runs import measuring"),
        ("envkit.models", "class Maker:\n    def make(self):\n        import torch"),
        ("envkit.models", "if TYPE_CHECKING:\n    import torch"),
        ("envkit.training.learner.loss", "import torch"),
        ("envkit.training.grpo", "from envkit.agents.local import LocalAgent"),
    ],
)
def test_allowed_imports_are_accepted(name: str, source: str) -> None:
    assert forbidden(Module("example.py", name, ast.parse(source))) == []
