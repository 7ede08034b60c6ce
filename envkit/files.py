"""Read files that a user names, within bounds."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

#: Largest settings file that is read: price table, card, benchmark spec. Real ones have a few kilobytes.
MAX_SETTINGS_BYTES: Final = 2**20


def read_regular_file(path: Path, limit_bytes: int) -> bytes:
    """Read a regular file of limited size. Pipes and devices are refused: reading them might never end.

    Raises:
        OSError: it cannot be opened or read, is not a regular file or is larger than ``limit_bytes``;
            ``strerror`` has the reason.
        ValueError: the path holds a null byte.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "found a pipe or device, expected a file", str(path))
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {limit_bytes:,} bytes; use a smaller file", str(path))
    return data


def read_settings(path: Path) -> str:
    """Read a settings file as UTF-8 text; see `read_regular_file`.

    Raises:
        OSError: it cannot be read, is not a regular file or is larger than `MAX_SETTINGS_BYTES`.
        ValueError: not UTF-8, or the path holds a null byte.
    """
    return read_regular_file(path, MAX_SETTINGS_BYTES).decode()


def _open_at_once(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a named pipe waits for a writer.
    return os.open(path, flags | os.O_NONBLOCK)
