"""Cases about isolation: host files, network, processes and privileges that sandboxed code must not get."""

from __future__ import annotations

import platform
import sys
from typing import Final

from envkit.sandbox_check.context import Case, CheckContext, unless

_DEVICES: Final = {
    *("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "console", "core"),
    *("fd", "stdin", "stdout", "stderr"),
}


def _same_python(context: CheckContext) -> str:
    found, expected = context.seen["version"], list(sys.version_info[:2])
    return unless(found == expected, f"Python {found} inside, {expected} outside")


def _sees_no(key: str, innocent: object) -> Case:
    return lambda context: unless(context.seen[key] == innocent, context.seen[key])


def _other_user(context: CheckContext) -> str:
    return unless(context.seen["uid"] != 0, "user id 0")


def _no_host_processes(context: CheckContext) -> str:
    count = context.seen["processes"]
    return unless(count <= 4, f"{count} processes in /proc")


def _no_host_environment(context: CheckContext) -> str:
    names = context.seen["environment"]
    return unless(not any(name.startswith("CANARY_") for name in names), names)


def _no_host_name(context: CheckContext) -> str:
    return unless(context.seen["host"] != platform.node(), context.seen["host"])


def _no_devices(context: CheckContext) -> str:
    found = set(context.seen["devices"]) - _DEVICES
    return unless(not found, sorted(found))


ISOLATION: Final[dict[str, Case]] = {
    "has the host's Python version": _same_python,
    "hides the host's files": _sees_no("files", []),
    "hides the host's packages": _sees_no("packages", []),
    "hides the host's environment": _no_host_environment,
    "hides the host's processes": _no_host_processes,
    "hides the host's name": _no_host_name,
    "has harmless devices only": _no_devices,
    "inherits no descriptor": _sees_no("descriptors", 3),
    "reaches no network": _sees_no("network", False),
    "reaches no socket of the host": _sees_no("abstract", False),
    "has no network interface": _sees_no("interfaces", []),
    "has a read-only root": _sees_no("writable", []),
    "is not root": _other_user,
    "has no capabilities": _sees_no("capabilities", "0" * 16),
    "cannot gain rights": _sees_no("gains", False),
    "cannot make user namespaces": _sees_no("namespaces", False),
    "cannot mount": _sees_no("mounts", False),
    "opens no sockets that leave its namespaces": _sees_no("families", []),
    "cannot slow down its init process": _sees_no("weighs", [False] * 3),
    "reaches no keyring": _sees_no("keyring", False),
}
