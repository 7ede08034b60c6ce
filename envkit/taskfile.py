"""Task files: JSONL with a header line, written once and read strictly.

Tasks of a checkout carry the same files, its suite for one. Those stand once, as lines of text between the
header, whose field ``texts`` counts them, and the tasks, which name such a file by the text's number.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from envkit.errors import StoreError, TaskFileError
from envkit.grading import canonical
from envkit.store import write_atomic
from envkit.types import JSON, Task

SCHEMA = "envkit.tasks/1"

#: Shorter texts are not worth a line of their own, in characters.
_SHORT = 200

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
    header: dict[str, JSON] = {"schema": SCHEMA, "seed": seed, "packages": packages, "count": len(tasks)}
    texts = _shared(tasks)
    if texts:
        header["texts"] = len(texts)
    numbers = {text: number for number, text in enumerate(texts)}
    lines = [header, *texts, *(_numbered(asdict(task), numbers) for task in tasks)]
    write_once(path, "".join(f"{canonical(line)}\n" for line in lines))
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
    count = header.get("texts", 0)
    if not isinstance(count, int) or not 0 <= count < len(lines):
        raise TaskFileError(
            f"{path}, line 1, field 'texts': found {count!r}, expected a number of lines below"
        )
    texts = [_text(path, number, line) for number, line in enumerate(lines[1 : count + 1], 2)]
    tasks = [_task(path, number, line, texts) for number, line in enumerate(lines[count + 1 :], count + 2)]
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


def _files_of(task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The files of a checkout's task, by path; none of any other task, whose lines stay whole."""
    suite = task["hidden"].get("suite")
    if isinstance(suite, dict) and isinstance(suite.get("files"), dict):  # pyright: ignore[reportUnknownMemberType]
        yield from (task["files"], cast("dict[str, Any]", suite["files"]))


def _shared(tasks: Sequence[Task]) -> list[str]:
    """Long texts that several files of tasks hold, in order of appearance."""
    kept = ({"files": task.files, "hidden": task.hidden} for task in tasks)
    every = (text for one in kept for files in _files_of(one) for text in files.values())
    return [text for text, count in Counter(every).items() if count > 1 and len(text) >= _SHORT]


def _numbered(task: dict[str, Any], numbers: Mapping[str, int]) -> dict[str, Any]:
    for files in _files_of(task):
        files |= {path: numbers.get(text, text) for path, text in files.items()}
    return task


def _json(path: Path, number: int, line: str) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise TaskFileError(f"{path}, line {number}: not JSON ({error}); make the file again") from error


def _text(path: Path, number: int, line: str) -> str:
    text = _json(path, number, line)
    if not isinstance(text, str):
        raise TaskFileError(f"{path}, line {number}: found {type(text).__name__}, expected a text")
    return text


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    data = _json(path, number, line)
    if not isinstance(data, dict):
        raise TaskFileError(f"{path}, line {number}: found {type(data).__name__}, expected an object")
    return cast("dict[str, Any]", data)


def _task(path: Path, number: int, line: str, texts: Sequence[str]) -> Task:
    data = _object(path, number, line)
    for name, kind in _FIELDS.items():
        if not isinstance(data.get(name), kind):
            found = type(data[name]).__name__ if name in data else "nothing"
            raise TaskFileError(
                f"{path}, line {number}, field {name!r}: found {found}, expected {kind.__name__}"
            )
    for files in _files_of(data):
        for name, text in files.items():
            if isinstance(text, int):
                if not 0 <= text < len(texts):
                    raise TaskFileError(
                        f"{path}, line {number}: file {name!r} is text {text}, and there are {len(texts)}; "
                        "the file was cut or edited, so make it again"
                    )
                files[name] = texts[text]
    return Task(**{name: data[name] for name in _FIELDS})
