"""The content of compressed files: zlib, gzip, and the packs of git, whose objects may build on each other.

It reads git's formats itself and never runs git, because a repository can name programs that git would start.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

#: Limit for the content of one stream.
MAX_STREAM_BYTES: Final = 2**26
#: Limit for the content of one file: a few bytes of deltas can ask for the whole stream limit each time.
_MAX_FILE_BYTES: Final = 2**28
_CHUNK_BYTES: Final = 2**16
#: Makes zlib detect its own format and gzip's.
_DETECT: Final = 32 + zlib.MAX_WBITS
_MAGIC: Final = (b"\x78", b"\x1f\x8b")
_PACK_MAGIC: Final = (b"PACK\0\0\0\2", b"PACK\0\0\0\3")
#: Names of git's object types by number. The last two are deltas.
_TYPES: Final = {1: b"commit", 2: b"tree", 3: b"blob", 4: b"tag"}
_OFFSET_DELTA, _NAME_DELTA = 6, 7


def decompressed(data: bytes) -> Iterator[bytes]:
    """Each compressed stream in a file, as far as it can be read; nothing if it is not a compressed file."""
    if data.startswith(_MAGIC):
        with contextlib.suppress(zlib.error):
            at = total = 0
            # A gzip file may have several members.
            while data.startswith(_MAGIC, at) and total < _MAX_FILE_BYTES:
                part, used = _inflate(memoryview(data)[at:])
                yield part
                at, total = at + max(used, 1), total + len(part)
    for start in _PACK_MAGIC:
        if (at := data.find(start)) >= 0:  # after a header, in a bundle
            yield from _objects(data[at:])


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a pack.

    Args:
        type: its number.
        base: the object that a delta changes: an offset in the pack, or a name; ``None`` for a whole object.
        data: the content, or the delta.
    """

    type: int
    base: int | bytes | None
    data: bytes


def _objects(pack: bytes) -> Iterator[bytes]:
    """Every object of a pack; see https://git-scm.com/docs/pack-format."""
    entries: dict[int, _Entry] = {}
    total = 0
    with contextlib.suppress(zlib.error, IndexError):  # cut off, or not a pack
        at = 12
        for _ in range(int.from_bytes(pack[8:12])):
            if total > _MAX_FILE_BYTES:
                break
            entry, end = _read_entry(pack, at)
            entries[at], at, total = entry, end, total + len(entry.data)
    known: dict[int | bytes, tuple[int, bytes]] = {}  # by offset and by name: type and content
    waiting = entries
    while waiting:
        unresolved: dict[int, _Entry] = {}
        for offset, entry in waiting.items():
            if entry.base is None:
                kind, content = entry.type, entry.data
            elif entry.base in known:
                kind, base = known[entry.base]
                content = _apply_delta(base, entry.data)
                if (total := total + len(content)) > _MAX_FILE_BYTES:
                    return
            else:
                unresolved[offset] = entry
                continue
            header = b"%s %d\0" % (_TYPES.get(kind, b""), len(content))
            name = hashlib.sha1(header + content, usedforsecurity=False).digest()
            known[offset] = known[name] = (kind, content)
            yield content
        if len(unresolved) == len(waiting):  # their bases are not in this pack
            yield from (entry.data for entry in unresolved.values())
            return
        waiting = unresolved


def _read_entry(pack: bytes, at: int) -> tuple[_Entry, int]:
    """The entry at an offset, and the offset of the next one.

    Raises:
        IndexError, zlib.error: there is none.
    """
    start = at
    kind = pack[at] >> 4 & 7
    while pack[at] & 0x80:
        at += 1
    at += 1
    base: int | bytes | None = None
    if kind == _OFFSET_DELTA:
        back = pack[at] & 0x7F
        while pack[at] & 0x80:
            at += 1
            back = (back + 1 << 7) | pack[at] & 0x7F
        at += 1
        base = start - back
    elif kind == _NAME_DELTA:
        base, at = pack[at : at + 20], at + 20
    data, used = _inflate(memoryview(pack)[at:])
    return _Entry(kind, base, data), at + used


def _apply_delta(base: bytes, delta: bytes) -> bytes:
    """The object that a delta makes of its base; the first part of it if the delta is broken."""
    made = bytearray()
    with contextlib.suppress(IndexError):
        at = 0
        for _ in range(2):  # the sizes of both
            while delta[at] & 0x80:
                at += 1
            at += 1
        while at < len(delta) and len(made) < MAX_STREAM_BYTES:
            code = delta[at]
            at += 1
            if not code & 0x80:
                made += delta[at : at + code]
                at += code
                continue
            numbers = [0, 0]  # offset in the base, number of bytes
            for bit in range(7):
                if code >> bit & 1:
                    which, shift = (0, bit) if bit < 4 else (1, bit - 4)
                    numbers[which] |= delta[at] << 8 * shift
                    at += 1
            offset, size = numbers[0], numbers[1] or 0x10000
            made += base[offset : offset + size]
    return bytes(made)


def _inflate(data: memoryview) -> tuple[bytes, int]:
    """The content of a stream, at most `MAX_STREAM_BYTES` of it, and the stream's length.

    Raises:
        zlib.error: it is no such stream.
    """
    stream = zlib.decompressobj(_DETECT)
    made = bytearray()
    at = 0
    # In chunks, because zlib copies the unused rest of its input.
    while not stream.eof and at < len(data) and len(made) < MAX_STREAM_BYTES:
        made += stream.decompress(data[at : at + _CHUNK_BYTES], MAX_STREAM_BYTES - len(made))
        at += _CHUNK_BYTES
    return bytes(made), min(at, len(data)) - len(stream.unused_data)
