"""Private temporary folders that hold a lease, so that those of killed processes can be reaped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import final

_PREFIX = "envkit-lease-"
#: Lies in every leased folder, and is made under its lock: a folder without it is somebody's own.
_MARK = ".envkit-lease"
#: A folder is locked a moment after it is made; one younger than this is never taken for a leftover.
_GRACE_S = 60.0
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@final
class Lease:
    """A fresh folder, locked for as long as its owner lives.

    The lock is the lease: the kernel drops it when the owner dies, however it dies, and it means the
    same across process-id namespaces, reboots and machines that share the folder. A pid does not.

    Args:
        parent: where to make it, an existing folder.
    """

    def __init__(self, parent: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = os.open(self.path, _OPEN_FOLDER)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.close(os.open(_MARK, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._lock))
        # Another uid (the one that sandboxed code runs as) may walk through, not list.
        os.fchmod(self._lock, 0o711)

    def close(self) -> None:
        """Remove the folder with all in it. Idempotent."""
        if self._lock < 0:
            return
        empty(self._lock)
        self.path.rmdir()
        os.close(self._lock)
        self._lock = -1


def reap(parent: Path) -> list[str]:
    """Remove this user's folders in ``parent`` whose owner is dead; returns their names."""
    names: list[str] = []
    for entry in os.scandir(parent):
        if not entry.name.startswith(_PREFIX) or not entry.is_dir(follow_symlinks=False):
            continue
        with contextlib.suppress(OSError):  # someone else was quicker, or it is in use
            folder = os.open(entry.path, _OPEN_FOLDER)
            try:
                found = os.fstat(folder)
                if found.st_uid != os.geteuid() or time.time() - found.st_mtime < _GRACE_S:
                    continue
                os.stat(_MARK, dir_fd=folder, follow_symlinks=False)
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                empty(folder)
                os.rmdir(entry.path)
                names.append(entry.name)
            finally:
                os.close(folder)
    return names


def empty(folder: int) -> None:
    """Remove everything in an open folder, however deep, unreadable or hostile the tree.

    Works without recursion and with two open folders at most: what is nested is first moved up to
    ``folder``, so no path grows long and no symlink is followed.

    Args:
        folder: descriptor of the folder, which itself stays.
    """
    os.fchmod(folder, 0o700)
    fresh, moved = os.urandom(8).hex(), 0  # no name that a hostile program has foreseen and taken
    while True:
        names = os.listdir(folder)
        if not names:
            return
        for name in names:
            if not _is_folder(name, folder):
                os.unlink(name, dir_fd=folder)
                continue
            child = open_entry(name, folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for nested in os.listdir(child):
                    if _is_folder(nested, child):
                        os.close(open_entry(nested, child, os.O_RDONLY | os.O_DIRECTORY))  # now writable
                        moved += 1
                        os.rename(nested, f"{fresh}-{moved}", src_dir_fd=child, dst_dir_fd=folder)
                    else:
                        os.unlink(nested, dir_fd=child)
            finally:
                os.close(child)
            os.rmdir(name, dir_fd=folder)


def open_entry(name: str, folder: int, flags: int) -> int:
    """Open one regular file or folder without following a symlink or waking a device or FIFO.

    Permissions that hostile code took away from its owner are given back first.

    Args:
        name: a single path component.
        folder: descriptor of the folder that holds it.
        flags: as for ``os.open``, without ``O_CREAT``; with ``O_DIRECTORY`` for a folder.

    Raises:
        NotADirectoryError: it is something else.
    """
    # O_PATH pins the inode without opening it; only then is it safe to ask what it is.
    pinned = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        mode = os.fstat(pinned).st_mode
        is_wanted, needed = (stat.S_ISDIR, 0o700) if flags & os.O_DIRECTORY else (stat.S_ISREG, 0o600)
        if not is_wanted(mode):
            raise NotADirectoryError(f"{name!r} is not a {'folder' if needed == 0o700 else 'regular file'}")
        same = f"/proc/self/fd/{pinned}"
        if mode & needed != needed:
            os.chmod(same, stat.S_IMODE(mode) | needed)
        return os.open(same, flags | os.O_CLOEXEC)
    finally:
        os.close(pinned)


def _is_folder(name: str, folder: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
