"""Access to a task's data: hidden fields as a frozen dataclass of the environment's own, files as text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar, cast

from envkit.errors import TaskFileError
from envkit.runtime.plain import decode, encode
from envkit.types import JSON, Task

Hidden = TypeVar("Hidden")

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
#: Deepest nesting of a task's data, in a task file whose line adds one level.
_MAX_DEPTH: Final = 99
#: Python writes integers of at most 4,300 digits.
_MAX_BITS: Final = 14_000


def read_hidden(kind: type[Hidden], task: Task) -> Hidden:
    """Build the dataclass ``kind`` from a task's hidden fields.

    Raises:
        TaskFileError: a field is missing, unknown or of the wrong type; the message names task and field.
    """
    try:
        return decode(kind, task.hidden, "hidden")
    except ValueError as error:
        raise TaskFileError(f"task {task.id}: {error}") from error


def require_storable(task: Task) -> None:
    """Refuse a task without id or split, and one that a task file would change or could not hold.

    Evaluation and training read tasks from files. There, a tuple would be a list, and the key 1 ``"1"``.

    Raises:
        TaskFileError: names the task, the field, what was found and what was expected.
    """
    if fault := next(_faults(task), None):
        raise TaskFileError(f"task {task.id!r}: {fault}")


def text_file(task: Task, path: str, what: str) -> str:
    """Return a task's file that must be text.

    Args:
        task: the task.
        path: of the file.
        what: its content, for people: ``the file to edit``.

    Raises:
        TaskFileError: the task has no such file, or it is binary.
    """
    content = task.files.get(path)
    if content is None:
        raise TaskFileError(f"task {task.id}: files has no {path!r}; expected {what} there")
    if isinstance(content, bytes):
        raise TaskFileError(
            f"task {task.id}: {path!r} is binary, {len(content):,} bytes; expected {what}, as text"
        )
    return content


def to_json(hidden: object) -> Mapping[str, JSON]:
    """Return a task's ``hidden`` for a dataclass; fields that are ``None`` are left out."""
    fields = cast("Mapping[str, JSON]", encode(hidden))
    return {name: value for name, value in fields.items() if value is not None}


def _faults(task: Task) -> Iterator[str]:
    """Yield a message for each part of a task that a task file would change or could not hold."""
    texts: dict[str, object] = {"id": task.id, "split": task.split, "prompt": task.prompt}
    for name, text in texts.items():
        if not isinstance(text, str):
            yield f"{name} is {text!r:.60}; expected a str"
        elif not text and name != "prompt":
            yield f"{name} is empty; expected a name"
        yield from _unstorable(text, name)
    tables: dict[str, object] = {"metadata": task.metadata, "hidden": task.hidden, "files": task.files}
    for name, table in tables.items():
        if not isinstance(table, dict):
            yield f"{name} is a {type(table).__name__}; expected a dict"
            return
        if name != "files":
            yield from _unstorable(cast("object", table), name)
    for path, content in task.files.items():
        if not isinstance(cast("object", path), str):
            yield f"files has the path {path!r}; expected a str"
        yield from _unstorable(path, f"the path {path!r} of files")
        if not isinstance(cast("object", content), bytes | str):
            yield f"files[{path!r}] is a {type(content).__name__}; expected a str, or bytes"
        elif isinstance(content, str):
            yield from _unstorable(content, f"files[{path!r}]")


def _unstorable(value: object, at: str, depth: int = 1) -> Iterator[str]:
    """Yield a message for each part of a value that JSON would change or could not hold.

    Args:
        value: any.
        at: where the value stands in its task, such as ``hidden['top']``, for the message.
        depth: its level of nesting; the outermost value has 1.
    """
    if depth > _MAX_DEPTH and isinstance(value, list | dict):
        yield f"{at:.60}... is nested more than {_MAX_DEPTH} levels deep"
        return
    match value:
        case str():
            if _LONE_SURROGATE.search(value):
                yield f"{at} holds half of a surrogate pair (\\ud800 to \\udfff); expected Unicode text"
        case float():
            if not math.isfinite(value):
                yield f"{at} is {value}; expected a finite number"
        case int():
            if value.bit_length() > _MAX_BITS:
                yield f"{at} has more than 4,000 digits"
        case None:
            return
        case list():
            for number, item in enumerate(cast("list[object]", value)):
                yield from _unstorable(item, f"{at}[{number}]", depth + 1)
        case dict():
            for key, item in cast("dict[object, object]", value).items():
                if not isinstance(key, str):
                    yield f"{at} has the key {key!r:.60}; expected a str"
                yield from _unstorable(key, f"a key of {at}")
                yield from _unstorable(item, f"{at}[{key!r}]", depth + 1)
        case _:
            wanted = "a str, a number, a bool, None, a list or a dict"
            yield f"{at} is a {type(value).__name__}; expected {wanted}"
