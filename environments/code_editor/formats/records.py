"""Read benchmark files strictly. An error names file, line and field."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast, final

from envkit.env.taskfile import MAX_BYTES
from envkit.errors import TaskFileError
from envkit.runtime.files import read_regular_file
from envkit.types import JSON

Value = TypeVar("Value")
_NAMES: Mapping[type, str] = {str: "a text", list: "a list", dict: "an object"}


@final
@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object of a file.

    Args:
        where: file and line, for error messages.
        data: the fields.
    """

    where: str
    data: Mapping[str, JSON]

    def text(self, field: str, default: str | None = None) -> str:
        """Return a text field; ``default`` if it is absent or null.

        Raises:
            TaskFileError: the field is not a text, or is absent and has no default.
        """
        if default is not None and self.data.get(field) is None:
            return default
        return self._field(field, str)

    def items(self, field: str) -> Sequence[JSON]:
        """Return a list field; errors as for `text`."""
        return cast("list[JSON]", self._field(field, list))

    def nested(self, field: str) -> Record:
        """Return an object field; errors as for `text`."""
        return Record(f"{self.where}, in {field!r}", cast("dict[str, JSON]", self._field(field, dict)))

    def error(self, field: str, found: str, expected: str) -> TaskFileError:
        """Return the error for a field with a wrong value of the right type."""
        return TaskFileError(f"{self.where}, field {field!r}: found {found}, expected {expected}")

    def _field(self, field: str, kind: type[Value]) -> Value:
        value = self.data.get(field)
        if not isinstance(value, kind):
            found = type(value).__name__ if field in self.data else "nothing"
            raise self.error(field, found, _NAMES[kind])
        return value


def read_text(path: Path) -> str:
    """Read a UTF-8 file, which is unpacked if its name ends in ``.gz``.

    Raises:
        TaskFileError: the file cannot be read.
    """
    try:
        raw = read_regular_file(path, MAX_BYTES)
        return (_unpacked(path, raw) if path.suffix == ".gz" else raw).decode()
    except OSError as error:
        raise TaskFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, EOFError, zlib.error) as error:
        raise TaskFileError(f"{path} cannot be read: {error}") from error


def _unpacked(path: Path, raw: bytes) -> bytes:
    with gzip.open(io.BytesIO(raw)) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise TaskFileError(f"{path} cannot be read: it unpacks to more than {MAX_BYTES:,} bytes")
    return data


def read_records(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSONL file; blank lines are skipped.

    Raises:
        TaskFileError: the file cannot be read, or a line is not a JSON object.
    """
    for where, text in read_lines(path):
        yield parse_record(text, where)


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield "FILE, line NUMBER" and text of each line that is not blank; errors as for `read_text`."""
    # Only "\n" ends a line of JSONL. `str.splitlines` would split inside texts.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line


def parse_record(text: str, where: str) -> Record:
    """Parse one JSON object.

    Raises:
        TaskFileError: the text is not a JSON object.
    """
    data = parse_json(text, where, "one object a line")
    if not isinstance(data, dict):
        raise TaskFileError(f"{where}: found {type(data).__name__}, expected an object")
    return Record(where, data)


def parse_json(text: str, where: str, expected: str) -> JSON:
    """Parse JSON.

    Raises:
        TaskFileError: the text is not JSON.
    """
    try:
        return cast("JSON", json.loads(text))
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f"{where}: not JSON ({error}); expected {expected}") from error
