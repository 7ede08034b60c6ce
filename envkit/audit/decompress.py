"""What a compressed file holds: zlib, gzip, and git's packs, in which each object may build on another.

No git is run on it: a repository can name programs that git would start.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

#: Bytes that one stream may become.
MOST_BYTES: Final = 2**26
#: And all of one file together: a change of a few bytes can ask for the most each time.
_MOST_TOGETHER_BYTES: Final = 2**28
_CHUNK_BYTES: Final = 2**16
#: zlib itself tells its own format from gzip's.
_EITHER: Final = 32 + zlib.MAX_WBITS
_STARTS: Final = (b"\x78", b"\x1f\x8b")
_PACKS: Final = (b"PACK\0\0\0\2", b"PACK\0\0\0\3")
#: Names of git's kinds of objects by number; the last two are changes to others.
_KINDS: Final = {1: b"commit", 2: b"tree", 3: b"blob", 4: b"tag"}
_BY_OFFSET, _BY_NAME = 6, 7


def decompressed(data: bytes) -> Iterator[bytes]:
    """All that is compressed in a file, as far as it can be read; nothing where it is no compressed one."""
    if data.startswith(_STARTS):
        with contextlib.suppress(zlib.error):
            at = total = 0
            # One may follow another, as gzip has it.
            while data.startswith(_STARTS, at) and total < _MOST_TOGETHER_BYTES:
                part, used = _inflated(memoryview(data)[at:])
                yield part
                at, total = at + max(used, 1), total + len(part)
    for start in _PACKS:
        if (at := data.find(start)) >= 0:  # behind a header, in a bundle
            yield from _objects(data[at:])


@dataclass(frozen=True, slots=True)
class _Entry:
    """An object of a pack.

    Args:
        kind: its number.
        base: what it changes: an offset in the pack, or a name; ``None`` where it stands for itself.
        data: content, or the change.
    """

    kind: int
    base: int | bytes | None
    data: bytes


def _objects(pack: bytes) -> Iterator[bytes]:
    """Every object of a pack; see https://git-scm.com/docs/pack-format."""
    entries: dict[int, _Entry] = {}
    total = 0
    with contextlib.suppress(zlib.error, IndexError):  # cut off, or none at all
        at = 12
        for _ in range(int.from_bytes(pack[8:12])):
            if total > _MOST_TOGETHER_BYTES:
                break
            entry, behind = _entry(pack, at)
            entries[at], at, total = entry, behind, total + len(entry.data)
    known: dict[int | bytes, tuple[int, bytes]] = {}  # by offset and by name: kind and content
    waiting = entries
    while waiting:
        left: dict[int, _Entry] = {}
        for offset, entry in waiting.items():
            if entry.base is None:
                kind, content = entry.kind, entry.data
            elif entry.base in known:
                kind, base = known[entry.base]
                content = _changed(base, entry.data)
                if (total := total + len(content)) > _MOST_TOGETHER_BYTES:
                    return
            else:
                left[offset] = entry
                continue
            header = b"%s %d\0" % (_KINDS.get(kind, b""), len(content))
            name = hashlib.sha1(header + content, usedforsecurity=False).digest()
            known[offset] = known[name] = (kind, content)
            yield content
        if len(left) == len(waiting):  # changes to what is not here
            yield from (entry.data for entry in left.values())
            return
        waiting = left


def _entry(pack: bytes, at: int) -> tuple[_Entry, int]:
    """The entry at an offset, and the offset behind it.

    Raises:
        IndexError, zlib.error: there is none.
    """
    start = at
    kind = pack[at] >> 4 & 7
    while pack[at] & 0x80:
        at += 1
    at += 1
    base: int | bytes | None = None
    if kind == _BY_OFFSET:
        back = pack[at] & 0x7F
        while pack[at] & 0x80:
            at += 1
            back = (back + 1 << 7) | pack[at] & 0x7F
        at += 1
        base = start - back
    elif kind == _BY_NAME:
        base, at = pack[at : at + 20], at + 20
    data, used = _inflated(memoryview(pack)[at:])
    return _Entry(kind, base, data), at + used


def _changed(base: bytes, change: bytes) -> bytes:
    """What a change makes of its base; as much as there is, where it is broken."""
    made = bytearray()
    with contextlib.suppress(IndexError):
        at = 0
        for _ in range(2):  # the sizes of both
            while change[at] & 0x80:
                at += 1
            at += 1
        while at < len(change) and len(made) < MOST_BYTES:
            code = change[at]
            at += 1
            if not code & 0x80:
                made += change[at : at + code]
                at += code
                continue
            numbers = [0, 0]  # where in the base, and how many bytes
            for bit in range(7):
                if code >> bit & 1:
                    which, shift = (0, bit) if bit < 4 else (1, bit - 4)
                    numbers[which] |= change[at] << 8 * shift
                    at += 1
            offset, size = numbers[0], numbers[1] or 0x10000
            made += base[offset : offset + size]
    return bytes(made)


def _inflated(data: memoryview) -> tuple[bytes, int]:
    """What a stream becomes, at most `MOST_BYTES` of it, and its own length.

    Raises:
        zlib.error: it is no such stream.
    """
    stream = zlib.decompressobj(_EITHER)
    made = bytearray()
    at = 0
    # Bit by bit: what is left over of a piece is copied.
    while not stream.eof and at < len(data) and len(made) < MOST_BYTES:
        made += stream.decompress(data[at : at + _CHUNK_BYTES], MOST_BYTES - len(made))
        at += _CHUNK_BYTES
    return bytes(made), min(at, len(data)) - len(stream.unused_data)
