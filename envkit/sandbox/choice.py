"""Choose a sandbox backend of this machine, by name or the best one."""

from __future__ import annotations

from typing import cast

from envkit.runtime.plugins import load, names
from envkit.sandbox import SandboxBackend

#: Backends in order of preference; plugins' backends come after these.
_PREFERENCE = ("zygote", "bubblewrap", "docker")


def sandbox_backend(name: str = "auto", image: str = "") -> SandboxBackend:
    """Return a usable backend.

    Args:
        name: of the backend; ``"auto"`` for the best isolated one on this machine.
        image: of the environment, if it has one: then ``"auto"`` means ``"docker"``.

    Raises:
        RegistryError: no such backend.
        SandboxUnavailable: it cannot run here. The message names the likely cause and the command that mends
            it; its notes hold the error of each backend that was tried.
    """
    from envkit.sandbox.check.diagnosis import unavailable

    if name == "auto" and image:
        name = "docker"
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
