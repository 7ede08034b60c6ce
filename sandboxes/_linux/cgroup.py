"""Control groups written straight into cgroupfs, version 1 or 2: one per command."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

from envkit.sandbox import Limits

_MOUNT = Path("/sys/fs/cgroup")
#: What version 1 needs one folder each for.
_V1_CONTROLLERS: Final = ("memory", "pids", "cpuacct")


@functools.cache
def parents() -> tuple[Path, ...]:
    """The folders in which this process may make control groups, found by trying.

    Three for version 1 (memory, pids, cpuacct), one for version 2, none where cgroupfs is absent,
    read-only or without these controllers.
    """
    try:
        mine = Path("/proc/self/cgroup").read_text()
    except OSError:
        return ()
    return next((folders for folders in _places(mine, _MOUNT) if _usable(folders)), ())


def _places(mine: str, mount: Path) -> Iterator[tuple[Path, ...]]:
    """Where groups might be made, given ``/proc/self/cgroup`` and where cgroupfs is mounted."""
    own: dict[str, str] = {}
    for line in mine.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
    if all(name in own for name in _V1_CONTROLLERS):
        yield tuple(mount / name / own[name] for name in _V1_CONTROLLERS)
    elif "" in own:
        # Version 2: a group that holds processes hands no controllers down, so go up to one that does.
        here = mount / own[""]
        for folder in (here, *here.parents):
            if folder.is_relative_to(mount) and _hands_down(folder):
                yield (folder,)


def _hands_down(folder: Path) -> bool:
    try:
        handed = (folder / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False
    return {"memory", "pids"} <= set(handed)


def _usable(folders: tuple[Path, ...]) -> bool:
    """Whether a group can be made here and a process moved into it, which are different rights."""
    try:
        group = Cgroup(folders, f"envkit-probe-{secrets.token_hex(8)}", Limits())
    except OSError:
        return False
    with subprocess.Popen(["sleep", "60"]) as probe:
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
    """A group that bounds memory and processes, and counts CPU time, of all that is put into it.

    Args:
        parents: what `parents` returned, not empty.
        name: a fresh folder name.
        limits: see `bound`; without any, nothing is bounded yet.
    """

    def __init__(self, parents: tuple[Path, ...], name: str, limits: Limits | None = None) -> None:
        self._folders = tuple(parent / name for parent in parents)
        self._v1 = len(parents) > 1
        self._memory, self._pids, self._cpu = self._folders if self._v1 else self._folders * 3
        #: Counters, once they were read: they are asked for so often that opening them each time would show.
        self._open: dict[Path, int] = {}
        made: list[Path] = []
        try:
            for folder in self._folders:
                folder.mkdir()
                made.append(folder)
            if limits is not None:
                self.bound(limits)
        except OSError:
            self._folders = tuple(made)  # of the others, somebody else is the owner
            self.close()
            raise

    def bound(self, limits: Limits) -> None:
        """Have the kernel enforce ``memory_bytes`` and ``processes`` from now on; call it once."""
        memory = str(limits.memory_bytes)
        (self._memory / ("memory.limit_in_bytes" if self._v1 else "memory.max")).write_text(memory)
        # Swap would let a program grow past its limit; the files are missing where there is none.
        swap, most = ("memory.memsw.limit_in_bytes", memory) if self._v1 else ("memory.swap.max", "0")
        with contextlib.suppress(OSError):
            (self._memory / swap).write_text(most)
        # One more than asked for: the sandbox's own pid 1.
        (self._pids / "pids.max").write_text(str(limits.processes + 1))

    def add(self, pids: list[int]) -> None:
        """Move processes in; all that they fork from now on stays in."""
        for folder in self._folders:
            for pid in pids:
                (folder / "cgroup.procs").write_text(str(pid))

    def join_descriptors(self) -> list[int]:
        """Descriptors at which a process of one thread moves itself in, by writing 0; the caller closes them.

        In version 1 that spares the whole system a lock that `add` takes, which every fork has to wait for.
        """
        name = "tasks" if self._v1 else "cgroup.procs"
        return [os.open(folder / name, os.O_WRONLY | os.O_CLOEXEC) for folder in self._folders]

    def cpu_s(self) -> float:
        """CPU seconds used so far by all that ever ran here."""
        if self._v1:
            return int(self._read(self._cpu / "cpuacct.usage")) / 1e9
        return _counter(self._read(self._cpu / "cpu.stat"), b"usage_usec") / 1e6

    def out_of_memory(self) -> bool:
        """Whether the kernel killed a process here for memory."""
        file = "memory.oom_control" if self._v1 else "memory.events"
        return _counter(self._read(self._memory / file), b"oom_kill") > 0

    def peak_memory_bytes(self) -> int:
        """The most memory that was charged at once, 0 where the kernel does not say."""
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
                except OSError:  # the kernel counts the dead a moment longer
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
    """Remove the groups whose name starts with ``name``, wherever they lie. For groups of dead owners."""
    for folder, names, _ in os.walk(_MOUNT):
        for found in names:
            if found.startswith(name):
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.join(folder, found))
