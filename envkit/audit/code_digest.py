"""The digest of all code that can change the verdicts of one environment.

A certificate is valid for code with the digest that it names. The digest covers:

- the environment's own package, and the packages of the environments that it inherits from, with the data
  files that these declare: all files but documents for people, and also those if the package's source names
  them. If an environment is a file in no package, the files beside it that it names count with it. Of a git
  repository, the commit counts;
- the modules of envkit in `VERDICT_MODULES` and `VERDICT_PACKAGES` that these import, directly or through
  others. They are found by reading import statements. A file in such a module's folder counts if the module
  names it, such as a program for the sandbox.

Python files count by their syntax tree, so comments, formatting and docstrings may be edited freely. Only the
docstrings of tools count, because agents read them. All other files count byte by byte. The digest is the
same on every machine and in every supported version of Python.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from envkit.audit.canonical_source import canonical, parse
from envkit.env import Env
from envkit.errors import UsageError
from envkit.sandbox.contents import data_paths, image_layout, repositories

#: Name of this way to compute a digest. Digests of different schemes cannot be compared.
SCHEME: Final = "syntax-tree-1"

#: Modules of envkit that decide verdicts. The others play and report episodes, make tasks or load models.
#: Sandbox backends and tasks are no part of the code: an audit checks the backend, and records a digest of
#: the tasks. Nor are the models of judges and their cards, which lie outside of the environment's package.
VERDICT_MODULES: Final = frozenset(
    {
        *("env", "env.authored", "env.base", "env.checks", "env.compare", "env.grade", "env.hidden"),
        *("env.judging", "env.spaces", "env.submission", "env.taskfile", "env.tool_runner", "env.tools"),
        *("env.wrappers", "errors", "runtime.plain", "runtime.secret_values", "runtime.syntax", "sandbox"),
        *("sandbox.contents", "sandbox.programs", "sandbox.repositories", "types"),
    }
)

#: Packages of which every module decides verdicts, such as another environment's graders.
VERDICT_PACKAGES: Final = ("env.wrappers.", "environments.", "sandbox.programs.")

#: envkit's own ``__init__.py``.
_ROOT: Final = Path(inspect.getfile(Env)).resolve().parents[1] / "__init__.py"

#: Files of a package that decide no verdict: certificates, caches, and documents that no source names.
_CERTIFICATES: Final = ("certificate.json", "certificate.md")
_CACHES: Final = ("__pycache__", ".git", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints")
_DOCUMENTS: Final = ("README", "CHANGELOG", "LICENSE")

_MAX_FILES: Final = 10_000
_MAX_BYTES: Final = 256 * 2**20


def content_digest(kind: type[Env]) -> str:
    """SHA-256 over the code that can change an environment's verdicts, as hex.

    Raises:
        UsageError: the environment's package is too large to be read before every run.
    """
    files: set[tuple[str, Path]] = set()
    pinned: set[str] = set()
    for base in kind.__mro__:
        if issubclass(base, Env) and base is not Env:
            files.update(package_files(base))
            pinned.update(f"{found.name} {found.commit}" for found in repositories(base))
    files.update(_imported_by([path for _, path in files]))
    found = hashlib.sha256(f"{SCHEME}\n".encode())
    # The order depends on names and contents, not on where the files are.
    for name, part in sorted((name, _read(path).digest) for name, path in files):
        found.update(f"{name} {part}\n".encode(errors="surrogateescape"))
    for line in sorted(pinned):
        found.update(f"{line}\n".encode())
    return found.hexdigest()


def package_files(kind: type[Env]) -> Iterator[tuple[str, Path]]:
    """Name and path of every file in the package of a class, and of the data that it declares.

    If it is in no package: of its module, of what this imports from its folder, of the files beside these
    modules that they name, and of its data. Of a base class of envkit, only its module, because other modules
    of envkit have nothing to do with it.

    Raises:
        UsageError: the package is too large.
    """
    is_environment = kind.__module__.startswith("envkit.environments.")
    if not is_environment and (shared := _source(kind.__module__)) is not None:
        yield _name(shared), shared
        return
    file = Path(inspect.getfile(kind)).resolve()
    top = file.parent
    tops = data_paths(kind) if "data" in vars(kind) else []
    if "image" in vars(kind) and (layout := image_layout(kind)) is not None:
        tops.append(layout)
    declared = {path for data in tops for path in (data, *data.rglob("*"))}
    is_in_package = (top / "__init__.py").exists()
    # Each environment of envkit is a folder. For another author's environment the whole package counts.
    while not kind.__module__.startswith("envkit.") and (top.parent / "__init__.py").exists():
        top = top.parent
    count = size = 0
    documents: list[Path] = []
    named: set[str] = set()
    for path in top.rglob("*") if is_in_package else {*_with_imported(file, kind.__module__), *declared}:
        inner = path.relative_to(top)
        if not (path.is_file() and (path in declared or _may_decide(inner))):
            continue
        count, size = count + 1, size + path.stat().st_size
        if count > _MAX_FILES or size > _MAX_BYTES:
            raise UsageError(
                f"environment {kind.id}: {top} holds more than {_MAX_FILES} files or {_MAX_BYTES >> 20} MiB, "
                "and its certificate covers all of them, those that `data` names included; use a part of the "
                "data, or put it into a wheel that `packages` names"
            )
        if _is_document(path) and path not in declared:
            documents.append(path)
            continue
        named |= _read(path).strings
        yield inner.as_posix(), path
    yield from ((path.relative_to(top).as_posix(), path) for path in documents if path.name in named)


def _may_decide(inner: Path) -> bool:
    """False for certificates and files in caches."""
    is_cached = inner.suffix in (".pyc", ".pyo") or any(part in _CACHES for part in inner.parts)
    return not (is_cached or inner.name in _CERTIFICATES)


def _is_document(path: Path) -> bool:
    """True for a document for people."""
    return path.name.startswith(_DOCUMENTS) and path.suffix in ("", ".md", ".rst", ".txt")


@final
@dataclass(frozen=True, slots=True)
class _File:
    """The parts of a file that a digest depends on.

    Attributes:
        digest: SHA-256 of a Python file's syntax tree, or of any other file's bytes, as hex.
        imports: module and name of each import from envkit, except for type checking. No name: the whole
            module.
        others: number of leading dots and dotted name of each other import.
        strings: the file's string constants.
    """

    digest: str
    imports: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[int, str], ...] = ()
    strings: frozenset[str] = frozenset()


def _read(path: Path) -> _File:
    return (_parsed if path.suffix == ".py" else _opaque)(path.read_bytes())


@functools.lru_cache(maxsize=1024)  # a run asks for its environment's digest several times
def _parsed(source: bytes) -> _File:
    tree = parse(source)
    if tree is None:
        return _opaque(source)
    imports = [*_imports(tree)]
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return _File(
        hashlib.sha256(canonical(tree)).hexdigest(),
        tuple((module, name) for level, module, name in imports if _is_envkit(module) and not level),
        tuple(
            (level, f"{module}.{name}".strip("."))
            for level, module, name in imports
            if level or not _is_envkit(module)
        ),
        frozenset(value for value in constants if isinstance(value, str)),
    )


def _opaque(data: bytes) -> _File:
    return _File(hashlib.sha256(data).hexdigest())


def _imports(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Number of leading dots, module and name of each import, except for type checking."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        match node := waiting.pop():
            case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                waiting += node.orelse
            case ast.Import(names=aliases):
                yield from ((0, alias.name, "") for alias in aliases)
            case ast.ImportFrom(module=module, names=aliases, level=level):
                yield from ((level, module or "", alias.name) for alias in aliases)
            case _:
                waiting += ast.iter_child_nodes(node)


def _with_imported(file: Path, name: str) -> Iterator[Path]:
    """A module in no package, what it imports from its folder, also through others, and files that they name.

    Args:
        file: the module.
        name: its name, which may begin with those of folders that are no packages.
    """
    top, prefix = file.parent, name[: name.rfind(".") + 1]
    installed = _installed_with(file)
    waiting, known = [file], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in known:
            continue
        known.add(path)
        yield path
        if path.suffix != ".py":
            continue
        waiting += _named_by(path)
        for level, imported in _read(path).others:
            folder = path.parents[min(level, len(path.parents)) - 1] if level else top
            inner = imported if level else imported.removeprefix(prefix)
            if folder.is_relative_to(top) and (installed is None or inner.partition(".")[0] in installed):
                waiting += _module_files(folder, inner)


def _module_files(folder: Path, name: str) -> Iterator[Path]:
    """The file of a module below a folder, or all files of the package that it belongs to."""
    first, _, rest = name.partition(".")
    if (folder / first / "__init__.py").is_file():
        yield from (path for path in (folder / first).rglob("*") if path.is_file())
    elif (folder / f"{first}.py").is_file():
        yield folder / f"{first}.py"
    elif rest and (folder / first).is_dir():
        yield from _module_files(folder / first, rest)


def _installed_with(file: Path) -> set[str] | None:
    """Top-level modules that are installed with a module; ``None`` if its folder is not pip's."""
    if next(file.parent.glob("*.dist-info"), None) is None:
        return None
    projects = importlib.metadata.packages_distributions()
    own = {*projects.get(file.stem, ())}
    return {name for name, known in projects.items() if own & {*known}}


def _imported_by(paths: list[Path]) -> Iterator[tuple[str, Path]]:
    """Name and path of each file that decides verdicts and that these files import, also through others."""
    waiting = [name for path in paths for name in _modules(path)]
    known: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in known or (path := _source(name)) is None:
            continue
        known.add(name)
        for file in (path, *_named_by(path)):
            yield _name(file), file
            waiting += _modules(file)


def _modules(path: Path) -> Iterator[str]:
    """The modules of envkit that a file imports, at any place in it."""
    for base, name in _read(path).imports:
        if base == "envkit" and name in ("", "*"):
            yield from _modules(_ROOT)
        else:
            yield _definer(base, name)


def _definer(base: str, name: str) -> str:
    """The module that ``from base import name`` depends on.

    If a package only re-exports the name, this is the module that it imports the name from. The package's
    other imports do not affect this name.
    """
    if _source(f"{base}.{name}") is not None:
        return f"{base}.{name}"
    file = _ROOT if base == "envkit" else _source(base)
    if file is not None and file.name == "__init__.py":
        for further, exported in _read(file).imports:
            if exported == name and further != base:
                return _definer(further, name)
    return base


def _named_by(path: Path) -> Iterator[Path]:
    """The files that a file names in its strings: beside it, or in a package that it names, too."""
    strings = _read(path).strings
    folders = [path.parent]
    for name in sorted(strings):
        if f"{name}.".removeprefix("envkit.") in VERDICT_PACKAGES and (init := _source(name)) is not None:
            folders.append(init.parent)
    for folder in folders:
        beside = {file.name: file for file in folder.iterdir() if file.is_file() and file != path}
        yield from (beside[name] for name in sorted(strings & {*beside}))


@functools.cache
def _source(module: str) -> Path | None:
    """The file of a module that decides verdicts; ``None`` for any other name."""
    name = module.removeprefix("envkit.")
    if name == module or not (name in VERDICT_MODULES or name.startswith(VERDICT_PACKAGES)):
        return None
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its parent is no package
        return None
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None


def _name(path: Path) -> str:
    """``envkit/env/checks.py``, wherever envkit is installed. A checkout has its environments elsewhere."""
    inner = path.relative_to(_ROOT.parents[1]).as_posix()
    return inner if inner.startswith("envkit/") else f"envkit/{inner}"


def _is_envkit(module: str) -> bool:
    return module == "envkit" or module.startswith("envkit.")
