"""Copies files to where all containers share them; run as ``python -P -S -c SOURCE``.

    argv  path of the host's UNIX socket; then for each folder its path, and that of its copy

What this user cannot read is left out, because commands run as the same user. Connects when the copies are
there, then waits until the host closes the socket. The host sends nothing.
"""

from __future__ import annotations


def occupy(descriptor: int) -> None:
    """Take a shared lock of each kind on an open file, which keeps them until it is closed.

    An exclusive lock on the file then always fails, and a shared one succeeds. So the locks on a file that
    containers share tell nothing.
    """
    import fcntl
    import os
    import struct

    fcntl.flock(descriptor, fcntl.LOCK_SH)
    whole = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, whole)


def unreadable(folder: str, names: list[str]) -> list[str]:
    """The entries of a folder that cannot be copied."""
    import os
    import stat

    def is_copied(path: str) -> bool:
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            return os.access(path, os.R_OK | os.X_OK)
        return stat.S_ISLNK(mode) or (stat.S_ISREG(mode) and os.access(path, os.R_OK))

    return [name for name in names if not is_copied(os.path.join(folder, name))]


def main(path: str, folders: list[str]) -> None:
    """Copy, take the locks, and hold them until the host goes away."""
    import os
    import shutil
    import socket

    shared = [f"/proc/self/ns/{name}" for name in os.listdir("/proc/self/ns")]
    for source, target in zip(folders[::2], folders[1::2], strict=True):
        shutil.copytree(source, target, symlinks=True, ignore=unreadable, dirs_exist_ok=True)
        for folder, _, files in os.walk(target):
            shared += [folder, *(os.path.join(folder, file) for file in files)]
    for one in shared:
        if not os.path.islink(one) or one.startswith("/proc/"):
            occupy(os.open(one, os.O_RDONLY))
    occupy(os.eventfd(0))  # the kernel has one inode for this and for most other descriptors without a file
    host = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    host.connect(path)
    host.recv(1)


if __name__ == "__main__":
    import sys

    main(sys.argv[1], sys.argv[2:])
