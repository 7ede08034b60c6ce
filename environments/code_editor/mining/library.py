"""Read the module sources of installed packages without importing them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from envkit.environments.code_editor.mining.fetch import fetched_folders
from envkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Library:
    """The Python sources of one distribution.

    Args:
        package: distribution name, such as ``more-itertools``.
        version: installed version.
        modules: dotted module name -> source text.
    """

    package: str
    version: str
    modules: Mapping[str, str]


def installed(package: str, version: str | None = None) -> Library:
    """Read an installed or fetched package without its test folders.

    Args:
        package: distribution name.
        version: the version to read; by default the one that Python would import.

    Raises:
        UsageError: the package is not installed, or has no Python source.
    """
    name = import_name(package, version)
    spec = _spec_of(name, package, version)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    modules: dict[str, str] = {}
    for folder in map(Path, folders):
        for file in sorted(folder.rglob("*.py")):
            parts = [name, *file.relative_to(folder).with_suffix("").parts]
            if not any(part in ("test", "tests", "testing", "__main__") for part in parts):
                dotted = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                modules[dotted] = file.read_bytes().decode("utf-8-sig", errors="replace")
    if spec and spec.origin and not folders and spec.origin.endswith(".py"):
        modules[name] = Path(spec.origin).read_bytes().decode("utf-8-sig", errors="replace")
    if not modules:
        raise UsageError(f"package {package!r} holds no Python source to mine; choose another")
    return Library(package, version_of(package, version), modules)


def data_file(package: str, *path: str, version: str | None = None) -> Path:
    """Path of a data file in an installed package's folder.

    Raises:
        UsageError: the package is not installed, or has no such file.
    """
    spec = _spec_of(import_name(package, version), package, version)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(folder, *path)).is_file():
            return file
    raise UsageError(f"package {package!r} has no file {'/'.join(path)}; install it again")


def _spec_of(name: str, package: str, version: str | None) -> ModuleSpec | None:
    """Find a module beside the metadata of its distribution; an editable one is somewhere else."""
    beside = str(_distribution(package, version).locate_file(""))
    return PathFinder.find_spec(name, [beside]) or importlib.util.find_spec(name)


def version_of(package: str, version: str | None = None) -> str:
    """The version that Python would import; with ``version``, that one if it is installed or fetched.

    Raises:
        UsageError: the package, or that version of it, is not installed.
    """
    return _distribution(package, version).version


def _distribution(package: str, version: str | None = None) -> importlib.metadata.Distribution:
    if not package.strip():
        raise UsageError(f"{package!r} is no package name; expected one such as more-itertools")
    path = [*sys.path, *map(str, fetched_folders())]
    found = list(importlib.metadata.distributions(name=package, path=path))
    fitting = [one for one in found if version is None or one.version == version]
    if fitting:
        return fitting[0]
    if found:
        raise UsageError(
            f"package {package!r} is installed in version {found[0].version}, not {version}; "
            f"install that one with: pip install {package}=={version}"
        )
    raise UsageError(
        f"package {package!r} is not installed, so nothing can be mined from it; "
        f"install it with: pip install {package}"
    )


def import_name(package: str, version: str | None = None) -> str:
    """The import name of a package, such as ``more_itertools`` for ``more-itertools``.

    Raises:
        UsageError: the package is not installed.
    """
    listed = (_distribution(package, version).read_text("top_level.txt") or "").split()
    plain = package.replace("-", "_")
    public = [name for name in listed or sorted(names_of(package, version)) if name[0] != "_"]
    return plain if plain in public or not public else public[0]


def names_of(package: str, version: str | None = None) -> set[str]:
    """Top-level import names of an installed distribution, from its list of files.

    Raises:
        UsageError: the package is not installed.
    """
    files = _distribution(package, version).files or ()
    return {
        file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py" and ".." not in file.parts
    }
