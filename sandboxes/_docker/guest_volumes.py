"""Holds folders in a container for as long as the host is there; run as ``python -P -S -c SOURCE``.

    argv  path of the host's UNIX socket; folders

The host gets a descriptor of each folder, in order, and sends nothing.
"""

from __future__ import annotations


def main(path: str, folders: list[str]) -> None:
    """Serve the host until it goes away."""
    import os
    import socket

    host = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    host.connect(path)
    socket.send_fds(host, [b"here"], [os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for folder in folders])
    host.recv(1)


if __name__ == "__main__":
    import sys

    main(sys.argv[1], sys.argv[2:])
