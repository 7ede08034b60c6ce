"""Reads a process tree from /proc, and limits processes, on machines without control groups."""

from __future__ import annotations

import contextlib
import math
import os
import resource

from envkit.sandbox import Limits

_TICKS = os.sysconf("SC_CLK_TCK")
_OPEN_FILES = 256


def family(pid: int) -> list[int]:
    """A process and its living descendants, except orphans that were reparented to another process."""
    found = [pid]
    for member in found:  # the list grows during the loop
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{member}/task"):
                with open(f"/proc/{member}/task/{task}/children") as children:
                    found += map(int, children.read().split())
    return found


def cpu_s(pids: list[int]) -> float:
    """CPU seconds of these processes and of their reaped children."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
            # The name in parentheses may hold any character. Fields 14 to 17: utime, stime, the children's.
            ticks += sum(map(int, stat.read().rpartition(b")")[2].split()[11:15]))
    return ticks / _TICKS


def rlimits(
    limits: Limits, *, memory: bool = False, processes: int | None = None
) -> dict[str, tuple[int, int]]:
    """Resource limits of each process of a command, by name: kind and value.

    Args:
        limits: of the command.
        memory: limit the address space too, because there is no control group.
        processes: limit the user's processes too; the user must have none outside the sandbox's namespace.
    """
    wanted = {
        # A backstop, because the supervisor counts the whole tree's time. Far above the limit, because the
        # kernel compares it with time sampled at ticks: beside processes that sleep and wake often, that
        # runs ahead by a fifth and more.
        "cpu": (resource.RLIMIT_CPU, 2 * math.ceil(limits.cpu_s) + 1),
        "fsize": (resource.RLIMIT_FSIZE, limits.disk_bytes),
        "nofile": (resource.RLIMIT_NOFILE, _OPEN_FILES),
        "core": (resource.RLIMIT_CORE, 0),
    }
    if memory:
        wanted["as"] = (resource.RLIMIT_AS, limits.memory_bytes)
    if processes is not None:
        wanted["nproc"] = (resource.RLIMIT_NPROC, processes)
    return {name: (kind, _within(kind, bound)) for name, (kind, bound) in wanted.items()}


def prlimit(limits: Limits, *, memory: bool = False, processes: int | None = None) -> list[str]:
    """The command prefix that starts a program under `rlimits`."""
    wanted = rlimits(limits, memory=memory, processes=processes)
    return ["prlimit", *(f"--{name}={bound}" for name, (_, bound) in wanted.items()), "--"]


def _within(kind: int, bound: int) -> int:
    """Cap a value at this process's own hard limit, which no child can exceed."""
    _, ceiling = resource.getrlimit(kind)
    return bound if ceiling == resource.RLIM_INFINITY else min(bound, ceiling)
