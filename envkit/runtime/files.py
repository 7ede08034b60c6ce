"""Read files that a user names or may have changed, within bounds."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tomllib
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, cast

from envkit.errors import ConfigError

#: Largest settings file that is read: price table, card, benchmark spec. Real ones have a few kilobytes.
MAX_SETTINGS_BYTES: Final = 2**20
_PIECE_BYTES: Final = 2**20
#: Largest JSON document that is read. Real ones have a few kilobytes.
_MAX_JSON_BYTES: Final = 2**24


def open_regular_file(path: Path) -> BufferedReader:
    """Open a regular file for reading. Pipes and devices are refused: reading them might never end.

    Raises:
        OSError: it cannot be opened or is not a regular file; ``strerror`` has the reason.
        ValueError: the path holds a null byte.
    """
    return open(path, "rb", opener=_open_regular)


def read_regular_file(path: Path, limit_bytes: int) -> bytes:
    """Read a regular file of limited size; see `open_regular_file`.

    Raises:
        OSError: it cannot be opened or read, is not a regular file or is larger than ``limit_bytes``;
            ``strerror`` has the reason.
        ValueError: the path holds a null byte.
    """
    data = bytearray()
    with open_regular_file(path) as file:
        # In pieces: one read of all bytes would first allocate as many as the limit.
        while len(data) <= limit_bytes and (piece := file.read(min(_PIECE_BYTES, limit_bytes + 1))):
            data += piece
    if len(data) > limit_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {limit_bytes:,} bytes; use a smaller file", str(path))
    return bytes(data)


def read_settings(path: Path) -> str:
    """Read a settings file as UTF-8 text; see `read_regular_file`.

    Raises:
        OSError: it cannot be read, is not a regular file or is larger than `MAX_SETTINGS_BYTES`.
        ValueError: not UTF-8, or the path holds a null byte.
    """
    return read_regular_file(path, MAX_SETTINGS_BYTES).decode()


def read_toml(path: Path) -> dict[str, Any]:
    """Read a settings file in TOML.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(read_settings(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a small file that holds one JSON object.

    Raises:
        OSError: it cannot be read, is not a regular file or is larger than 16 MiB.
        ValueError: not JSON, or not an object.
    """
    try:
        found: object = json.loads(read_regular_file(path, _MAX_JSON_BYTES))
    except RecursionError as error:
        raise ValueError(f"nested too deeply: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {str(found)[:40]}")
    return cast("dict[str, Any]", found)


def file_digest(path: Path) -> str:
    """SHA-256 of a regular file, as hex.

    Raises:
        OSError: it cannot be read or is not a regular file.
    """
    with open_regular_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_regular(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a named pipe waits for a writer.
    handle = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # `open` itself refuses a folder
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, "found a pipe or device, expected a file", path)
