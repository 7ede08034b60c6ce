"""Typed hidden fields: a frozen dataclass of an environment's own, to and from `envkit.types.Task.hidden`."""

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


def to_json(hidden: object) -> Mapping[str, JSON]:
    """Return a task's ``hidden`` for a dataclass; fields that are ``None`` are left out."""
    fields = cast("Mapping[str, JSON]", encode(hidden))
    return {name: value for name, value in fields.items() if value is not None}
