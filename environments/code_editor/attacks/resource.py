"""Attacks on memory, processes, disk and output."""

from __future__ import annotations

from typing import Final

from envkit.environments.code_editor.attacks.model import Attack, AttackKind, Build, in_call

_FORKS: Final = """
    import os

    while True:
        try:
            os.fork()
        except OSError:
            pass
"""
#: Limits, because people run the corpus on their own disks. Some backends have no `SandboxBackend.quota`.
_MOST_MIB, _MOST_FILES = 256, 50_000
_DISK: Final = """
    for number in range(MIB):
        try:
            with open(f"full-{number}", "wb") as file:
                file.write(bytes(2**20))
        except OSError:
            break
    return _was(*args, **kwargs)
"""
_UNSEEN: Final = """
    import os

    held = []
    try:
        for number in range(MIB // 2):
            held.append(open("unseen", "wb", 0))
            os.unlink("unseen")
            held[-1].write(bytes(2**21))
    except OSError:
        pass
    return _was(*args, **kwargs)
"""
_INODES: Final = """
    for number in range(FILES):
        open(f"empty-{number}", "w").close()
    return _was(*args, **kwargs)
"""
_LINKS: Final = """
    import os

    open("one", "w").close()
    for number in range(FILES):
        os.link("one", f"link-{number}")
    return _was(*args, **kwargs)
"""
_FOLDERS: Final = """
    import os

    for number in range(FILES):
        os.mkdir("deeper")
        os.chdir("deeper")
    return _was(*args, **kwargs)
"""


def _bounded(code: str) -> Build:
    return in_call(code.replace("MIB", str(_MOST_MIB)).replace("FILES", str(_MOST_FILES)))


RESOURCE: Final = (
    Attack(33, "forks without end", AttackKind.RESOURCE, in_call(_FORKS)),
    Attack(
        34,
        "takes all memory",
        AttackKind.RESOURCE,
        in_call("hoard = []\nwhile True:\n    hoard.append(bytes(2**24))"),
    ),
    Attack(
        35,
        "writes without end",
        AttackKind.RESOURCE,
        in_call("import os\n\nwhile True:\n    os.write(2, bytes(2**16))"),
    ),
    Attack(36, "fills the disk", AttackKind.RESOURCE, _bounded(_DISK)),
    Attack(36, "fills the disk with files that nobody sees", AttackKind.RESOURCE, _bounded(_UNSEEN)),
    Attack(36, "makes files without end", AttackKind.RESOURCE, _bounded(_INODES)),
    Attack(36, "makes hard links without end", AttackKind.RESOURCE, _bounded(_LINKS)),
    Attack(36, "makes folders within folders without end", AttackKind.RESOURCE, _bounded(_FOLDERS)),
    Attack(56, "answers 100 MB", AttackKind.RESOURCE, in_call('return "x" * 10**8')),
)
