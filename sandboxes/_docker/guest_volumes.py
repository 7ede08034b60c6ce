"""Keeps volumes mounted in a container until the host goes away; run as ``python -P -S -c SOURCE``.

    argv  path of the host's UNIX socket; folders at which the volumes are mounted

Passes a descriptor of each folder to the host, in order. The host sends nothing.
"""

from __future__ import annotations


def main(path: str, folders: list[str]) -> None:
    """Pass the descriptors, then wait until the host closes the socket."""
    import os
    import socket

    host = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    host.connect(path)
    socket.send_fds(host, [b"here"], [os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for folder in folders])
    host.recv(1)


if __name__ == "__main__":
    import sys

    main(sys.argv[1], sys.argv[2:])
