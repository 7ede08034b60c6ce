"""What is installed: environments and sandboxes by name, through entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from envkit.errors import RegistryError
from envkit.sandbox import SandboxBackend

#: Entry point groups that plugins may add to.
GROUPS = {
    "environment": "envkit.environments",
    "sandbox": "envkit.sandboxes",
}

#: Backends in order of preference; plugins' backends come after these.
_PREFERENCE = ("zygote", "bubblewrap", "docker")


def names(kind: str) -> list[str]:
    """Registered names of a kind (``environment`` or ``sandbox``), sorted."""
    return sorted(points(kind))


def points(kind: str) -> dict[str, EntryPoint]:
    """Entry points of a kind by name; nothing is loaded."""
    return {point.name: point for point in entry_points(group=GROUPS[kind])}


def load(kind: str, name: str) -> Any:
    """Load the object that is registered under a name.

    Raises:
        RegistryError: no such name; the message lists the registered ones.
    """
    found = points(kind)
    if name not in found:
        raise RegistryError(f"no {kind} {name!r}; there is: {', '.join(sorted(found)) or 'none'}")
    return found[name].load()


def sandbox_backend(name: str = "auto") -> SandboxBackend:
    """Return a usable backend: the named one, or for ``"auto"`` the best isolated one on this machine.

    Raises:
        RegistryError: no such backend.
        SandboxUnavailable: it cannot run here. The message names the likely cause and the command that mends
            it; its notes hold the error of each backend that was tried.
    """
    from envkit.sandbox_check.diagnosis import unavailable

    if name != "auto":
        backend = cast("SandboxBackend", load("sandbox", name)())
        if problem := backend.available():
            raise unavailable({name: problem})
        return backend
    known = names("sandbox")
    order = [n for n in _PREFERENCE if n in known] + [n for n in known if n not in _PREFERENCE]
    problems: dict[str, str] = {}
    for candidate in order:
        backend = cast("SandboxBackend", load("sandbox", candidate)())
        if not backend.isolated:
            continue
        problem = backend.available()
        if problem is None:
            return backend
        problems[candidate] = problem
    raise unavailable(problems)
