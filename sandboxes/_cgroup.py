"""Control groups written straight into cgroupfs, version 1 or 2: one per command."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from pathlib import Path
from typing import Final, final

from envkit.sandbox import Limits

_MOUNT = Path("/sys/fs/cgroup")
#: What version 1 needs one folder each for.
_V1_CONTROLLERS: Final = ("memory", "pids", "cpuacct")


@functools.cache
def parents() -> tuple[Path, ...]:
    """The folders in which this process may make control groups.

    Three for version 1 (memory, pids, cpuacct), one for version 2, none where cgroupfs is absent,
    read-only or without these controllers. Found by trying, once.
    """
    own: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
    if all(name in own for name in _V1_CONTROLLERS):
        v1 = tuple(_MOUNT / name / own[name] for name in _V1_CONTROLLERS)
        return v1 if _usable(v1) else ()
    if "" not in own:
        return ()
    # Version 2: a group that holds processes cannot hand controllers down, so go up to one that does.
    here = _MOUNT / own[""]
    for folder in (here, *here.parents):
        if folder.is_relative_to(_MOUNT) and _hands_down(folder) and _usable((folder,)):
            return (folder,)
    return ()


def _hands_down(folder: Path) -> bool:
    try:
        return {"memory", "pids"} <= set((folder / "cgroup.subtree_control").read_text().split())
    except OSError:
        return False


def _usable(folders: tuple[Path, ...]) -> bool:
    try:
        Cgroup(folders, f"envkit-probe-{os.getpid()}", Limits()).close()
    except OSError:
        return False
    return True


@final
class Cgroup:
    """A group that bounds memory and processes, and counts CPU time, of all that is put into it.

    Args:
        parents: what `parents` returned, not empty.
        name: a fresh folder name.
        limits: ``memory_bytes`` and ``processes`` are enforced by the kernel; ``cpu_s`` is only counted.
    """

    def __init__(self, parents: tuple[Path, ...], name: str, limits: Limits) -> None:
        self._folders = tuple(parent / name for parent in parents)
        self._memory, self._pids, self._cpu = self._folders if len(parents) > 1 else self._folders * 3
        self._v1 = len(parents) > 1
        try:
            for folder in self._folders:
                folder.mkdir()
            memory, peak = str(limits.memory_bytes), "memory.limit_in_bytes" if self._v1 else "memory.max"
            (self._memory / peak).write_text(memory)
            # Swap would let a program grow past its limit; the files are missing where there is none.
            swap = ("memory.memsw.limit_in_bytes", memory) if self._v1 else ("memory.swap.max", "0")
            with contextlib.suppress(OSError):
                (self._memory / swap[0]).write_text(swap[1])
            # One more than asked for: the sandbox's own pid 1.
            (self._pids / "pids.max").write_text(str(limits.processes + 1))
        except OSError:
            self.close()
            raise

    def add(self, pids: list[int]) -> None:
        """Move processes in; all that they fork from now on stays in."""
        for folder in self._folders:
            for pid in pids:
                (folder / "cgroup.procs").write_text(str(pid))

    def cpu_s(self) -> float:
        """CPU seconds used so far by all that ever ran here."""
        if self._v1:
            return int((self._cpu / "cpuacct.usage").read_text()) / 1e9
        return _counter(self._cpu / "cpu.stat", "usage_usec") / 1e6

    def out_of_memory(self) -> bool:
        """Whether the kernel killed a process here for memory."""
        return (
            _counter(self._memory / ("memory.oom_control" if self._v1 else "memory.events"), "oom_kill") > 0
        )

    def peak_memory_bytes(self) -> int:
        """The most memory that was charged at once, 0 where the kernel does not say."""
        try:
            file = "memory.max_usage_in_bytes" if self._v1 else "memory.peak"  # version 2: since Linux 5.19
            return int((self._memory / file).read_text())
        except OSError:
            return 0

    def close(self) -> None:
        """Remove the group once its processes are dead. Idempotent."""
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


def _counter(file: Path, key: str) -> int:
    for line in file.read_text().splitlines():
        name, _, value = line.partition(" ")
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
