"""Copies the image's files to where all containers share them; run as ``python -P -S -c SOURCE``.

    argv  path of the host's UNIX socket; folder to copy; folder to copy it to

Connects when the copy is there, then waits until the host closes the socket. The host sends nothing.
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


def main(path: str, source: str, target: str) -> None:
    """Copy, take the locks, and hold them until the host goes away."""
    import os
    import shutil
    import socket

    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    shared = [f"/proc/self/ns/{name}" for name in os.listdir("/proc/self/ns")]
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

    main(*sys.argv[1:])
