"""Files of others, read strictly: what is not as expected is named by file, line and field."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast, final

from envkit.errors import TaskFileError
from envkit.types import JSON

Value = TypeVar("Value")
_NAMES: Mapping[type, str] = {str: "a text", list: "a list", dict: "an object"}


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One object of a file.

    Args:
        where: file and line, for errors.
        data: its fields.
    """

    where: str
    data: Mapping[str, JSON]

    def text(self, field: str, default: str | None = None) -> str:
        """A field that is a text; ``default`` where it is absent or null.

        Raises:
            TaskFileError: it is something else, or absent without a default.
        """
        if default is not None and self.data.get(field) is None:
            return default
        return self._field(field, str)

    def items(self, field: str) -> Sequence[JSON]:
        """A field that is a list; errors as of `text`."""
        return cast("list[JSON]", self._field(field, list))

    def row(self, field: str) -> Row:
        """A field that is an object; errors as of `text`."""
        return Row(f"{self.where}, in {field!r}", cast("dict[str, JSON]", self._field(field, dict)))

    def error(self, field: str, found: str, expected: str) -> TaskFileError:
        """What to raise where a field's value is of the right type and still wrong."""
        return TaskFileError(f"{self.where}, field {field!r}: found {found}, expected {expected}")

    def _field(self, field: str, kind: type[Value]) -> Value:
        value = self.data.get(field)
        if not isinstance(value, kind):
            found = type(value).__name__ if field in self.data else "nothing"
            raise self.error(field, found, _NAMES[kind])
        return value


def read_text(path: Path) -> str:
    """A UTF-8 file, unpacked where its name ends in ``.gz``.

    Raises:
        TaskFileError: it cannot be read.
    """
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except OSError as error:
        raise TaskFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, EOFError, zlib.error) as error:
        raise TaskFileError(f"{path} cannot be read: {error}") from error


def read_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file, one a line; blank lines are passed over.

    Raises:
        TaskFileError: the file cannot be read, or a line is no JSON object.
    """
    for where, text in read_lines(path):
        yield parse_row(text, where)


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """File and number of each line that is not blank, for errors, and the line; errors as of `read_text`."""
    # Only "\n" ends a line of JSONL: texts may hold the others that `str.splitlines` knows.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line


def parse_row(text: str, where: str) -> Row:
    """One JSON object.

    Raises:
        TaskFileError: it is none.
    """
    data = parse_json(text, where, "one object a line")
    if not isinstance(data, dict):
        raise TaskFileError(f"{where}: found {type(data).__name__}, expected an object")
    return Row(where, data)


def parse_json(text: str, where: str, expected: str) -> JSON:
    """A text of JSON.

    Raises:
        TaskFileError: it is none.
    """
    try:
        return cast("JSON", json.loads(text))
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f"{where}: not JSON ({error}); expected {expected}") from error
