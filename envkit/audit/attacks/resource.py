"""Attacks on memory, processes, disk and output."""

from __future__ import annotations

from typing import Final

from envkit.audit.attacks.model import Attack, Kind, in_call

_FORKS: Final = """
    import os

    while True:
        try:
            os.fork()
        except OSError:
            pass
"""
#: The corpus is run by people on their own disks, which not every backend bounds in all.
_MOST_MIB: Final = 256
_DISK: Final = """
    for number in range(MIB):
        try:
            with open(f"full-{number}", "wb") as file:
                file.write(bytes(2**20))
        except OSError:
            break
    return _was(*args, **kwargs)
"""
_INODES: Final = """
    number = 0
    while True:
        number += 1
        open(f"empty-{number}", "w").close()
"""

RESOURCE: Final = (
    Attack(33, "forks without end", Kind.RESOURCE, in_call(_FORKS)),
    Attack(
        34,
        "takes all memory",
        Kind.RESOURCE,
        in_call("hoard = []\nwhile True:\n    hoard.append(bytes(2**24))"),
    ),
    Attack(
        35,
        "writes without end",
        Kind.RESOURCE,
        in_call("import os\n\nwhile True:\n    os.write(2, bytes(2**16))"),
    ),
    Attack(36, "fills the disk", Kind.RESOURCE, in_call(_DISK.replace("MIB", str(_MOST_MIB)))),
    Attack(36, "makes files without end", Kind.RESOURCE, in_call(_INODES)),
    Attack(56, "answers 100 MB", Kind.RESOURCE, in_call('return "x" * 10**8')),
)
