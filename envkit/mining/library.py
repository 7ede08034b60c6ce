"""Read the module sources of installed packages without importing them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from envkit.errors import UsageError
from envkit.mining.fetch import fetched_folder


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


def installed(package: str) -> Library:
    """Read an installed package without its test folders.

    Raises:
        UsageError: the package is not installed, or has no Python source.
    """
    name = import_name(package)
    spec = _spec_of(name)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    modules: dict[str, str] = {}
    for folder in map(Path, folders):
        for file in sorted(folder.rglob("*.py")):
            parts = [name, *file.relative_to(folder).with_suffix("").parts]
            if not any(part in ("test", "tests", "testing", "__main__") for part in parts):
                dotted = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                modules[dotted] = file.read_bytes().decode(errors="replace")
    if spec and spec.origin and not folders and spec.origin.endswith(".py"):
        modules[name] = Path(spec.origin).read_bytes().decode(errors="replace")
    if not modules:
        raise UsageError(f"package {package!r} holds no Python source to mine; choose another")
    return Library(package, version_of(package), modules)


def data_file(package: str, *path: str) -> Path:
    """Path of a data file in an installed package's folder.

    Raises:
        UsageError: the package is not installed, or has no such file.
    """
    spec = _spec_of(import_name(package))
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(folder, *path)).is_file():
            return file
    raise UsageError(f"package {package!r} has no file {'/'.join(path)}; install it again")


def _spec_of(name: str) -> ModuleSpec | None:
    """Find a module among installed packages, then among fetched ones."""
    return importlib.util.find_spec(name) or PathFinder.find_spec(name, [str(fetched_folder())])


def is_installed(package: str) -> bool:
    """True if a distribution of that name can be imported here."""
    return any(importlib.metadata.distributions(name=package))


def version_of(package: str) -> str:
    """The installed version.

    Raises:
        UsageError: the package is not installed.
    """
    return _distribution(package).version


def _distribution(package: str) -> importlib.metadata.Distribution:
    if not package.strip():
        raise UsageError(f"{package!r} is no package name; expected one such as more-itertools")
    path = [*sys.path, str(fetched_folder())]
    try:
        return next(iter(importlib.metadata.distributions(name=package, path=path)))
    except StopIteration:
        raise UsageError(
            f"package {package!r} is not installed, so nothing can be mined from it; "
            f"install it with: pip install {package}"
        ) from None


def import_name(package: str) -> str:
    """The import name of a package, such as ``more_itertools`` for ``more-itertools``.

    Raises:
        UsageError: the package is not installed.
    """
    listed = (_distribution(package).read_text("top_level.txt") or "").split()
    plain = package.replace("-", "_")
    public = [name for name in listed or sorted(names_of(package)) if name[0] != "_"]
    return plain if plain in public or not public else public[0]


def names_of(package: str) -> set[str]:
    """Top-level import names of an installed distribution, from its list of files.

    Raises:
        UsageError: the package is not installed.
    """
    files = _distribution(package).files or ()
    return {
        file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py" and ".." not in file.parts
    }
