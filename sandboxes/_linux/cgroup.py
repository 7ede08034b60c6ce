"""Control groups (version 1 or 2), one per command, created by writing into cgroupfs."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

from envkit.sandbox import Limits

_MOUNT = Path("/sys/fs/cgroup")
#: The controllers of version 1 that are used. Each has its own folder.
_V1_CONTROLLERS: Final = ("memory", "pids", "cpuacct")


@functools.cache
def parents() -> tuple[Path, ...]:
    """The folders in which this process can create control groups, found by trying.

    Three for version 1 (memory, pids, cpuacct), one for version 2. None if cgroupfs is absent, read-only or
    lacks these controllers.
    """
    try:
        mine = Path("/proc/self/cgroup").read_text()
    except OSError:
        return ()
    return next((folders for folders in _places(mine, _MOUNT) if _usable(folders)), ())


def _places(mine: str, mount: Path) -> Iterator[tuple[Path, ...]]:
    """Folders in which groups might be created.

    Args:
        mine: content of ``/proc/self/cgroup``.
        mount: where cgroupfs is mounted.
    """
    own: dict[str, str] = {}
    for line in mine.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
    if all(name in own for name in _V1_CONTROLLERS):
        yield tuple(mount / name / own[name] for name in _V1_CONTROLLERS)
    elif "" in own:
        # In version 2 a group that holds processes cannot delegate controllers, so go up to one that does.
        here = mount / own[""]
        for folder in (here, *here.parents):
            if folder.is_relative_to(mount) and _delegates(folder):
                yield (folder,)


def _delegates(folder: Path) -> bool:
    try:
        delegated = (folder / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False
    return {"memory", "pids"} <= set(delegated)


def _usable(folders: tuple[Path, ...]) -> bool:
    """True if a group can be created here and a process moved into it, which are different rights."""
    try:
        group = Cgroup(folders, f"envkit-probe-{secrets.token_hex(8)}", Limits())
    except OSError:
        return False
    # Python rather than `sleep`, because nothing needs to be on the PATH for it.
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]) as probe:
        try:
            group.add([probe.pid])
        except OSError:
            return False
        finally:
            probe.kill()
            probe.wait()
            group.close()
    return True


@final
class Cgroup:
    """A group that limits the memory and number of its processes, and counts their CPU time.

    Args:
        parents: what `parents` returned, not empty.
        name: a fresh folder name.
        limits: see `bound`; with ``None`` the group has no limits yet.
    """

    def __init__(self, parents: tuple[Path, ...], name: str, limits: Limits | None = None) -> None:
        self._folders = tuple(parent / name for parent in parents)
        self._v1 = len(parents) > 1
        self._memory, self._pids, self._cpu = self._folders if self._v1 else self._folders * 3
        #: Descriptors of counter files. They are read so often that opening them each time would be slow.
        self._open: dict[Path, int] = {}
        made: list[Path] = []
        try:
            for folder in self._folders:
                folder.mkdir()
                made.append(folder)
            if limits is not None:
                self.bound(limits)
        except OSError:
            self._folders = tuple(made)  # the others exist already and belong to another process
            self.close()
            raise

    def bound(self, limits: Limits) -> None:
        """Make the kernel enforce ``memory_bytes`` and ``processes`` from now on. Call it once."""
        memory = str(limits.memory_bytes)
        (self._memory / ("memory.limit_in_bytes" if self._v1 else "memory.max")).write_text(memory)
        # Swap would let a program grow past its limit. The files are missing if the kernel has no swap.
        swap, bound = ("memory.memsw.limit_in_bytes", memory) if self._v1 else ("memory.swap.max", "0")
        with contextlib.suppress(OSError):
            (self._memory / swap).write_text(bound)
        # One more than requested, because the sandbox's init process counts as well.
        (self._pids / "pids.max").write_text(str(limits.processes + 1))

    def add(self, pids: list[int]) -> None:
        """Move processes into the group. Their later children are in it too."""
        for folder in self._folders:
            for pid in pids:
                (folder / "cgroup.procs").write_text(str(pid))

    def join_descriptors(self) -> list[int]:
        """Descriptors through which a single-threaded process joins the group, by writing 0 to each.

        The caller closes them. In version 1, joining this way avoids a system-wide lock that `add` takes and
        that every fork on the machine waits for.
        """
        name = "tasks" if self._v1 else "cgroup.procs"
        return [os.open(folder / name, os.O_WRONLY | os.O_CLOEXEC) for folder in self._folders]

    def cpu_s(self) -> float:
        """CPU seconds used so far by all processes that were ever in the group."""
        if self._v1:
            return int(self._read(self._cpu / "cpuacct.usage")) / 1e9
        return _counter(self._read(self._cpu / "cpu.stat"), b"usage_usec") / 1e6

    def out_of_memory(self) -> bool:
        """True if the kernel killed a process of the group because memory ran out."""
        file = "memory.oom_control" if self._v1 else "memory.events"
        return _counter(self._read(self._memory / file), b"oom_kill") > 0

    def peak_memory_bytes(self) -> int:
        """Peak memory charged to the group, 0 if the kernel does not report it."""
        try:
            file = "memory.max_usage_in_bytes" if self._v1 else "memory.peak"  # version 2: since Linux 5.19
            return int((self._memory / file).read_text())
        except OSError:
            return 0

    def _read(self, file: Path) -> bytes:
        if file not in self._open:
            self._open[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._open[file], 4096, 0)

    def close(self) -> None:
        """Remove the group once its processes are dead. Idempotent."""
        while self._open:
            os.close(self._open.popitem()[1])
        for folder in self._folders:
            for pause_s in (0.001, 0.01, 0.1, 0.0):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:  # the kernel counts dead processes for a moment longer
                    time.sleep(pause_s)
                else:
                    break


def _counter(table: bytes, key: bytes) -> int:
    for line in table.splitlines():
        name, _, value = line.partition(b" ")
        if name == key:
            return int(value)
    return 0


def remove_leftovers(name: str) -> None:
    """Remove all groups whose name starts with ``name``; their owner must be dead."""
    for folder, names, _ in os.walk(_MOUNT):
        for found in names:
            if found.startswith(name):
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.join(folder, found))
