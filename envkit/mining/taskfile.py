"""Task files: JSONL with a header line, written once and read strictly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from envkit.errors import StoreError, TaskFileError
from envkit.grading import canonical
from envkit.store import write_atomic
from envkit.types import Task

SCHEMA = "envkit.tasks/1"

_FIELDS: Mapping[str, type] = {
    "id": str,
    "split": str,
    "prompt": str,
    "files": dict,
    "metadata": dict,
    "hidden": dict,
}


def digest(tasks: Sequence[Task]) -> str:
    """sha256 over the tasks' canonical lines, as hex."""
    total = hashlib.sha256()
    for task in tasks:
        total.update(_line(task).encode())
    return total.hexdigest()


def write_tasks(path: Path, tasks: Sequence[Task], seed: int) -> str:
    """Write a task file whole or not at all, and return its digest.

    Raises:
        TaskFileError: there are no tasks, or see `write_once`.
    """
    if not tasks:
        raise TaskFileError(f"{path}: there are no tasks to write; nothing was written")
    packages = {
        str(t.metadata["package"]): str(t.metadata.get("version")) for t in tasks if "package" in t.metadata
    }
    header = {"schema": SCHEMA, "seed": seed, "packages": packages, "count": len(tasks)}
    write_once(path, canonical(header) + "\n" + "".join(map(_line, tasks)))
    return digest(tasks)


def write_once(path: Path, text: str) -> None:
    """Write a file whole or not at all; nothing is overwritten.

    Raises:
        TaskFileError: the file exists and differs, or the disk refuses.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text.encode())
        elif path.read_bytes() != text.encode():
            raise TaskFileError(f"{path} exists and differs; move it away or choose another name")
    except StoreError as error:
        raise TaskFileError(str(error)) from error
    except OSError as error:
        raise TaskFileError(f"{path} cannot be written: {error.strerror or error}") from error


def read_tasks(path: Path) -> list[Task]:
    """Read a task file.

    Raises:
        TaskFileError: names the file, and the line and field where something is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise TaskFileError(
            f"{path} does not exist; make it with: envkit tasks mine PACKAGE -o {path}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TaskFileError(f"{path} cannot be read: {error}") from error
    if not lines:
        raise TaskFileError(f"{path} is empty; expected a header line and one task per line")
    header = _object(path, 1, lines[0])
    if header.get("schema") != SCHEMA:
        raise TaskFileError(
            f"{path}, line 1, field 'schema': found {header.get('schema')!r}, expected {SCHEMA!r}"
        )
    tasks = [_task(path, number, line) for number, line in enumerate(lines[1:], 2)]
    if header.get("count") != len(tasks):
        raise TaskFileError(
            f"{path}, line 1, field 'count': says {header.get('count')!r} tasks and {len(tasks)} follow; "
            "the file was cut or edited, so make it again"
        )
    if not tasks:
        raise TaskFileError(f"{path} holds a header and no tasks; make it again")
    return tasks


def _line(task: Task) -> str:
    return canonical(asdict(task)) + "\n"


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        data: object = json.loads(line)
    except ValueError as error:
        raise TaskFileError(f"{path}, line {number}: not JSON ({error}); make the file again") from error
    if not isinstance(data, dict):
        raise TaskFileError(f"{path}, line {number}: found {type(data).__name__}, expected an object")
    return cast("dict[str, Any]", data)


def _task(path: Path, number: int, line: str) -> Task:
    data = _object(path, number, line)
    for name, kind in _FIELDS.items():
        if not isinstance(data.get(name), kind):
            found = type(data[name]).__name__ if name in data else "nothing"
            raise TaskFileError(
                f"{path}, line {number}, field {name!r}: found {found}, expected {kind.__name__}"
            )
    return Task(**{name: data[name] for name in _FIELDS})
