"""Temporary folders that are locked while their owner lives, so that later runs can remove abandoned ones."""

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
#: A file in every leased folder, created under the lock. Without it, a folder is no lease, whatever its name.
_MARK = ".envkit-lease"
#: Folders younger than this are never removed, because a folder is locked a moment after it is created.
_GRACE_S = 60.0
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@final
class Lease:
    """A fresh temporary folder, locked for as long as its owner lives.

    The kernel releases the lock when the owner dies, however it dies. Unlike a process id, the lock means the
    same across process-id namespaces, reboots and machines that share the folder.

    Args:
        parent: an existing folder to create it in.
    """

    def __init__(self, parent: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = os.open(self.path, _OPEN_FOLDER)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.close(os.open(_MARK, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._lock))
        # Sandboxed code may run as another uid: it may walk through the folder, but not list it.
        os.fchmod(self._lock, 0o711)

    def close(self) -> None:
        """Remove the folder and everything in it. Idempotent."""
        if self._lock < 0:
            return
        empty(self._lock)
        self.path.rmdir()
        os.close(self._lock)
        self._lock = -1


def reap(parent: Path) -> list[str]:
    """Remove this user's leased folders in ``parent`` whose owner is dead; returns their names."""
    names: list[str] = []
    for entry in os.scandir(parent):
        if not entry.name.startswith(_PREFIX) or not entry.is_dir(follow_symlinks=False):
            continue
        with contextlib.suppress(OSError):  # another process removed it first, or its owner lives
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

    Neither recurses nor keeps more than two folders open: nested folders are first moved up into ``folder``,
    so no path grows long and no symlink is followed.

    Args:
        folder: descriptor of the folder, which itself stays.
    """
    os.fchmod(folder, 0o700)
    # A random prefix, because a hostile program could have created any name that it can predict.
    fresh, moved = os.urandom(8).hex(), 0
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
                        # Opening it makes it writable, which a rename of a folder needs.
                        os.close(open_entry(nested, child, os.O_RDONLY | os.O_DIRECTORY))
                        moved += 1
                        os.rename(nested, f"{fresh}-{moved}", src_dir_fd=child, dst_dir_fd=folder)
                    else:
                        os.unlink(nested, dir_fd=child)
            finally:
                os.close(child)
            os.rmdir(name, dir_fd=folder)


def open_entry(name: str, folder: int, flags: int) -> int:
    """Open a regular file or folder without following a symlink or opening a device or FIFO.

    Restores the owner's permissions first, because hostile code may have removed them.

    Args:
        name: a single path component.
        folder: descriptor of the folder that holds it.
        flags: as for ``os.open``, without ``O_CREAT``; with ``O_DIRECTORY`` for a folder.

    Raises:
        NotADirectoryError: it is neither, or not the kind that ``flags`` ask for.
    """
    # O_PATH pins the inode without opening it. Only then can its type be checked without a race.
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
