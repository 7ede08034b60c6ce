"""What is installed: environments and sandboxes by name, through entry points."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from envkit.errors import EnvkitError, RegistryError

#: Entry point groups that plugins may add to.
GROUPS = {
    "environment": "envkit.environments",
    "sandbox": "envkit.sandboxes",
}


def names(kind: str) -> list[str]:
    """Registered names of a kind (``environment`` or ``sandbox``), sorted."""
    return sorted(points(kind))


def points(kind: str) -> dict[str, EntryPoint]:
    """Entry points of a kind by name; nothing is loaded."""
    return {point.name: point for point in entry_points(group=GROUPS[kind])}


def load(kind: str, name: str) -> Any:
    """Load the object that is registered under a name.

    Raises:
        RegistryError: no such name; the message lists the registered ones. Or several packages register it;
            the message names them. Or its code cannot be loaded; the
            message names the line.
    """
    found = {point.value: point for point in entry_points(group=GROUPS[kind]) if point.name == name}
    if not found:
        known = ", ".join(names(kind)) or "none"
        raise RegistryError(
            f"no {kind} {name!r}; there is: {known}. Those of a package of yours are there once it is "
            "installed: pip install --editable FOLDER"
        )
    if len(found) > 1:
        both = " and ".join(f"{value} ({_package_of(point)})" for value, point in sorted(found.items()))
        raise RegistryError(f"{kind} {name!r} is registered as {both}; rename one, or uninstall its package")
    [(value, point)] = found.items()
    try:
        return point.load()
    except (EnvkitError, MemoryError):
        raise
    except Exception as error:
        where = place_of(error) or f"entry point {value}"
        raise RegistryError(
            f"{kind} {name} cannot be loaded: {where}: {type(error).__name__}: {error}; mend it there, or "
            "uninstall its package"
        ) from error


def place_of(error: Exception) -> str:
    """File and line of other code than envkit's and Python's that an error comes from; empty for none.

    Args:
        error: was caught where envkit called code of others.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    python, ours = sysconfig.get_path("stdlib") + os.sep, str(Path(__file__).parents[1]) + os.sep
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((ours, "<frozen "))
        and (not frame.filename.startswith(python) or "-packages" in frame.filename)
    ]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def place_in_plugin(error: Exception) -> str:
    """Return file and line of the innermost code of a plugin that an error passed; empty for none."""
    values = [point.value for kind in GROUPS for point in points(kind).values()]
    packages = {re.split(r"[.:]", value)[0] for value in values} - {"envkit"}
    places = [
        f"{frame.f_code.co_filename}, line {line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] in packages
    ]
    return places[-1] if places else ""


def _package_of(point: EntryPoint) -> str:
    return f"of {point.dist.name}" if point.dist is not None else "of an unknown package"
