"""Read a checkout: modules, pytest suite and their origin. Nothing is run."""

from __future__ import annotations

import ast
import configparser
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath
from sys import stdlib_module_names
from typing import Any, Final, cast, final

from envkit.environments.code_editor.graders.suite import is_test_file
from envkit.environments.code_editor.mining.modules import absolute
from envkit.errors import UsageError
from envkit.runtime.syntax import parse

#: Largest code and suite together, because every task of the checkout carries both.
MAX_BYTES: Final = 2**20
#: Larger files are data that no task needs.
_MAX_FILE_BYTES: Final = 2**18
#: File of the suite's configuration in a workspace. Not pytest.ini: next to a file of that name, a warm
#: sandbox starts a new interpreter for every command, because the file could shadow the imported module.
SETTINGS: Final = "tox.ini"
_TESTS: Final = ("test", "tests")
_NO_CODE: Final = (*_TESTS, "benchmarks", "build", "dist", "docs", "examples")
_NO_MODULES: Final = ("setup.py", "conftest.py", "noxfile.py")
#: Pytest's configuration files in its order of search, and the section in each.
_CONFIGURATIONS: Final = (
    ("pytest.toml", "pytest"),
    (".pytest.toml", "pytest"),
    ("pytest.ini", "pytest"),
    (".pytest.ini", "pytest"),
    ("pyproject.toml", "tool.pytest"),
    ("pyproject.toml", "tool.pytest.ini_options"),
    ("tox.ini", "pytest"),
    ("setup.cfg", "tool:pytest"),
)
#: Settings that decide what a test is and when it fails. Others, such as ``addopts``, affect how tests are
#: run and reported, and often need plugins that a sandbox does not hold.
_SETTINGS: Final = (
    *("filterwarnings", "markers", "python_classes", "python_functions", "usefixtures", "xfail_strict"),
)


@final
@dataclass(frozen=True)
class Checkout:
    """A project's own code and tests. Paths are those of a workspace, without a leading ``src``.

    Args:
        name: name from pyproject.toml, otherwise of the folder.
        version: version from pyproject.toml, otherwise the first digits of the commit, otherwise ``"0"``.
        commit: commit of a git checkout, or ``""``. Uncommitted changes do not show in it.
        license: name of the licence file, or ``""``.
        code: path -> text of the modules and of the text files next to them.
        tests: path -> text of the suite, with its configuration.
        origins: path -> path of the file in the checkout.
    """

    name: str
    version: str
    commit: str
    license: str
    code: Mapping[str, str]
    tests: Mapping[str, str]
    origins: Mapping[str, str]

    @cached_property
    def modules(self) -> Mapping[str, str]:
        """Dotted name -> path, of code and tests."""
        paths = sorted(path for path in (*self.code, *self.tests) if path.endswith(".py"))
        return {_dotted(path): path for path in paths}

    def text(self, path: str) -> str:
        """Text of a file of the code or the suite."""
        return self.tests[path] if path in self.tests else self.code[path]

    def closure(self, modules: Iterable[str]) -> set[str]:
        """The modules and all modules of the checkout that they import; dynamic imports are not seen."""
        found: set[str] = set()
        pending = [*modules]
        while pending:
            name = pending.pop()
            if name in self.modules and name not in found:
                found.add(name)
                # Python imports `a` before `a.b`.
                pending += [name.rpartition(".")[0], *self._imports.get(name, ())]
        return found

    @cached_property
    def tested(self) -> set[str]:
        """Modules of the suite, and all modules that they import."""
        return self.closure(name for name, path in self.modules.items() if path in self.tests)

    @cached_property
    def _imports(self) -> Mapping[str, set[str]]:
        return {name: {*self._imported(name, path)} for name, path in self.modules.items()}

    def _imported(self, name: str, path: str) -> Iterator[str]:
        package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
        for node in ast.walk(_tree(self.text(path))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = absolute(node, package)
                yield source
                yield from (f"{source}.{alias.name}" for alias in node.names)


def require_imports(checkout: Checkout, offered: Collection[str]) -> None:
    """Raise if the suite imports packages that its sandbox does not have.

    Args:
        checkout: the checkout.
        offered: names of the modules that its sandbox has beside the standard library.

    Raises:
        UsageError: names the first such import and how to mend it; or the sandbox already has a package of
            this name.
    """
    roots = {name.partition(".")[0] for name, path in checkout.modules.items() if path in checkout.code}
    if taken := sorted(roots & {*offered}):
        raise UsageError(
            f"{checkout.name} holds {taken[0]!r}, which its tests' sandbox holds too and imports instead; "
            "it cannot be mined"
        )
    local = {part for path in checkout.modules.values() for part in PurePosixPath(path).with_suffix("").parts}
    for name in sorted(checkout.tested):
        path = checkout.modules[name]
        for root in _needed(_tree(checkout.text(path))):
            if root in stdlib_module_names or root in local or root in offered:
                continue
            package = next(iter(packages_distributions().get(root, ())), None)
            raise UsageError(
                f"{checkout.origins[path]} imports {root!r}, which a sandbox does not hold; add --with "
                f"{package or 'and the package that it comes from'}"
            )


def read_checkout(root: Path) -> Checkout:
    """Read a folder with a project's sources and its pytest suite. Symlinks are not followed.

    Raises:
        UsageError: not a folder, no package, no suite, too large, or a malformed configuration.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is no folder; expected a checkout with Python sources and a pytest suite")
    project, settings = _project(root), _settings(root)
    base = root / "src" if _packages(root / "src") else root
    places = _packages(base)
    origins: dict[str, str] = {}
    code: dict[str, str] = {}
    tests: dict[str, str] = {}
    for path, text in (pair for place in (*places, *_suite(root, settings)) for pair in _texts(place, root)):
        if _configures_pytest(path.name, text):  # it would stand before the configuration that is made below
            continue
        owner = next((place for place in places if path.is_relative_to(place)), None)
        inside = path.relative_to(root if owner is None else base)
        # Files in a package are code, even if testpaths names the package; its tests are not.
        is_suite = owner is None or is_test_file(path.name) or path.name == "conftest.py"
        is_suite = is_suite or any(part in _TESTS for part in inside.parts[:-1])
        (tests if is_suite else code)[inside.as_posix()] = text
        origins[inside.as_posix()] = path.relative_to(root).as_posix()
    if not any(path.endswith(".py") for path in code):
        raise UsageError(
            f"{root} holds no package to mine; expected folders with __init__.py, or modules, there or in src"
        )
    if not any(is_test_file(path) for path in tests):
        raise UsageError(
            f"{root} holds no pytest suite; expected a folder tests, files test_*.py, or testpaths in "
            "pyproject.toml or pytest.ini"
        )
    size = sum(len(text.encode()) for text in (*code.values(), *tests.values()))
    if size > MAX_BYTES:
        raise UsageError(
            f"{root} holds {size:,} bytes of code and tests, more than the {MAX_BYTES:,} that each of its "
            "tasks can carry; mine a part of it that stands alone"
        )
    tests[SETTINGS] = _configuration(settings, tests)
    commit = _commit(root)
    licences = sorted(
        entry.name
        for entry in root.iterdir()
        if re.match("licen[cs]e|copying", entry.name, re.I) and entry.is_file()
    )
    return Checkout(
        name=re.sub(r"[^\w.-]", "-", str(project.get("name") or root.resolve().name)),
        version=str(project.get("version") or commit[:12] or "0"),
        commit=commit,
        license=licences[0] if licences else "",
        code=dict(sorted(code.items())),
        tests=dict(sorted(tests.items())),
        origins=origins,
    )


def _configures_pytest(name: str, text: str) -> bool:
    sections = [section for file, section in _CONFIGURATIONS if file == name]
    # Pytest takes a file that is named after it without any section, too.
    return bool(sections) and ("pytest" in name or any(f"[{section}" in text for section in sections))


def _packages(base: Path) -> list[Path]:
    """Packages and single modules in a folder."""
    if not base.is_dir():
        return []
    return sorted(
        entry
        for entry in base.iterdir()
        if not entry.is_symlink()
        and (
            ((entry / "__init__.py").is_file() and entry.name not in _NO_CODE)
            or (entry.suffix == ".py" and entry.name not in _NO_MODULES and not is_test_file(entry.name))
        )
    )


def _suite(root: Path, settings: Mapping[str, str]) -> list[Path]:
    """Files and folders of the suite, apart from test folders in packages."""
    named = settings.get("testpaths", "").split()
    if unsafe := [one for one in named if one.startswith("/") or ".." in PurePosixPath(one).parts]:
        raise UsageError(
            f"{root}: testpaths names {unsafe[0]}, which lies outside; mine the folder that holds it"
        )
    found = [path for one in named for path in _globbed(root, one)]
    found = found or [root / name for name in _TESTS if (root / name).is_dir()]
    beside = [
        entry for entry in sorted(root.iterdir()) if is_test_file(entry.name) or entry.name == "conftest.py"
    ]
    return [*found, *beside]


def _globbed(root: Path, pattern: str) -> list[Path]:
    if PurePosixPath(pattern) == PurePosixPath("."):  # which `Path.glob` does not take
        return [root]
    try:
        return sorted(root.glob(pattern))
    except (ValueError, NotImplementedError, IndexError) as error:
        raise UsageError(f"{root}: testpaths names {pattern!r}, which is no pattern: {error}") from error


def _texts(place: Path, root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the text files of a place, without symlinks, caches, large files and files that are not UTF-8."""
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(place).parts)
        inner = [one for one in (path, *path.parents) if one != root and one.is_relative_to(root)]
        linked = any(one.is_symlink() for one in inner)
        if hidden or linked or not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
            continue
        try:
            yield path, path.read_bytes().decode()
        except UnicodeDecodeError:
            continue


def _project(root: Path) -> Mapping[str, Any]:
    return _table(root / "pyproject.toml", ["project"])


def _table(path: Path, names: Sequence[str]) -> Mapping[str, Any]:
    """A table of a TOML file; empty if it has none of that name."""
    found = _toml(path)
    for name in names:
        inner: object = found.get(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{path}: {name!r} is {type(inner).__name__}, expected a table")
        found = cast("dict[str, Any]", inner)
    return found


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _settings(root: Path) -> Mapping[str, str]:
    """Pytest's settings from the first file that has any."""
    for name, section in _CONFIGURATIONS:
        path = root / name
        if not path.is_file():
            continue
        if path.suffix == ".toml":
            table = _table(path, section.split("."))
            settings = {key: _plain(value) for key, value in table.items() if key != "ini_options"}
        else:
            parser = configparser.ConfigParser(interpolation=None)
            try:
                parser.read_string(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, configparser.Error) as error:
                reason = " ".join(str(error).split())
                raise UsageError(f"{path} cannot be read: {reason}") from error
            settings = dict(parser[section]) if parser.has_section(section) else {}
        if settings or "pytest" in name:  # a file of pytest's own counts even if it is empty
            return settings
    return {}


def _plain(value: Any) -> str:
    return "\n".join(map(str, cast("list[object]", value))) if isinstance(value, list) else str(value)


def _configuration(settings: Mapping[str, str], tests: Iterable[str]) -> str:
    """Pytest's configuration with those settings of the project that affect outcomes."""
    # Pytest adds the folder of a test module to the path unless it is a package; `suite_worker` does not.
    folders = {PurePosixPath(path).parent for path in tests if is_test_file(path)}
    bare = sorted(str(one) for one in folders if f"{one}/__init__.py" not in tests)
    own = [
        one.removeprefix("src/") for one in settings.get("pythonpath", "").split() if one not in (".", "src")
    ]
    kept = {key: settings[key] for key in _SETTINGS if key in settings}
    kept["pythonpath"] = "\n".join(dict.fromkeys([".", *bare, *own]))
    # One module that cannot be imported must not prevent the others from running.
    kept["addopts"] = "--continue-on-collection-errors"
    indented = {key: value.strip().replace("\n", "\n    ") for key, value in kept.items()}
    return "[pytest]\n" + "".join(f"{key} =\n    {value}\n" for key, value in indented.items())


def _commit(root: Path) -> str:
    """The checked-out commit, read from git's files: running git could run programs from its settings."""
    folder = root / ".git"
    try:
        if folder.is_file():  # of a worktree or submodule
            folder = root / folder.read_text().removeprefix("gitdir:").strip()
        if not (folder / "HEAD").is_file():  # reading a pipe would block
            return ""
        commit = (folder / "HEAD").read_text().strip()
        reference = commit.removeprefix("ref: ")
        if reference != commit:
            common = folder / "commondir"
            places = [folder, *([folder / common.read_text().strip()] if common.is_file() else [])]
            loose = [(place / reference).read_text() for place in places if (place / reference).is_file()]
            packed = [line for place in places for line in _lines(place / "packed-refs")]
            commit = [*loose, *(line.split()[0] for line in packed if line.endswith(f" {reference}")), ""][
                0
            ].strip()
    except (OSError, ValueError):
        return ""
    return commit if re.fullmatch("[0-9a-f]{40,64}", commit) else ""


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _dotted(path: str) -> str:
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _tree(text: str) -> ast.Module:
    """The tree of a module; empty if it is not Python, because then its import fails anyway."""
    try:
        return parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def _needed(tree: ast.Module) -> Iterator[str]:
    """Top-level names of unconditional imports; those in ``try`` or ``if`` may be absent."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]
