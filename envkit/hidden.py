"""Typed access to a task: hidden fields as a frozen dataclass of the environment's own, files as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

from envkit.errors import TaskFileError
from envkit.plain import decode, encode
from envkit.types import JSON, Task

Hidden = TypeVar("Hidden")


def read_hidden(kind: type[Hidden], task: Task) -> Hidden:
    """Build the dataclass ``kind`` from a task's hidden fields.

    Raises:
        TaskFileError: a field is missing, unknown or of the wrong type; the message names task and field.
    """
    try:
        return decode(kind, task.hidden, "hidden")
    except ValueError as error:
        raise TaskFileError(f"task {task.id}: {error}") from error


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
