"""Task files: JSONL with a header line, written once and read strictly.

The header has the fields ``schema``, ``seed``, ``packages``, ``count`` (tasks in the file) and, if known,
``environment``. Tasks of a checkout share many files, such as its tests. Each long text that occurs more than
once stands on a line of its own between header and tasks. The header's ``texts`` counts these lines, and a
task refers to a text by its number. A binary file is an object, ``{"base64": TEXT}``.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, cast

from envkit.env import Env
from envkit.env.compare import canonical
from envkit.errors import StoreError, TaskFileError
from envkit.runtime.files import read_regular_file
from envkit.runtime.store import write_atomic
from envkit.types import JSON, Task, repeated_ids

SCHEMA = "envkit.tasks/1"
#: Largest task file that is read. Files that envkit writes have a few megabytes.
MAX_BYTES: Final = 2**28
#: Deepest nesting of JSON that is read: Python's recursion limit allows some hundred levels.
MAX_DEPTH: Final = 100

#: Key of a binary file's content.
_BASE64: Final = "base64"
#: Shorter texts are not worth a line of their own, in characters.
_MIN_SHARED = 200

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


def write_tasks(path: Path, tasks: Sequence[Task], seed: int, environment: str | None = None) -> str:
    """Write a task file atomically and return the tasks' digest.

    Args:
        path: file to write; never overwritten.
        tasks: at least one.
        seed: the seed that the tasks were made with.
        environment: name of the environment that the tasks are for.

    Raises:
        TaskFileError: there are no tasks, or two of one id, or as for `write_once`.
    """
    if not tasks:
        raise TaskFileError(f"{path}: there are no tasks to write; nothing was written")
    if twice := repeated_ids(tasks):
        raise TaskFileError(f"{path}: several tasks have the id {twice}; nothing was written")
    packages = {
        str(t.metadata["package"]): str(t.metadata.get("version")) for t in tasks if "package" in t.metadata
    }
    header: dict[str, JSON] = {"schema": SCHEMA, "seed": seed, "packages": packages, "count": len(tasks)}
    if environment is not None:
        header["environment"] = environment
    texts = _shared_texts(tasks)
    if texts:
        header["texts"] = len(texts)
    numbers = {text: number for number, text in enumerate(texts)}
    lines = [header, *texts, *(_with_base64(_with_numbers(asdict(task), numbers)) for task in tasks)]
    write_once(path, "".join(f"{canonical(line)}\n" for line in lines))
    return digest(tasks)


def write_once(path: Path, text: str) -> None:
    """Write a file atomically. An existing file with the same content is left alone.

    Raises:
        TaskFileError: the file exists with other content, or cannot be written.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text.encode())
        elif read_regular_file(path, MAX_BYTES) != text.encode():
            raise TaskFileError(f"{path} exists and differs; move it away or choose another name")
    except StoreError as error:
        raise TaskFileError(str(error)) from error
    except OSError as error:
        raise TaskFileError(f"{path} cannot be written: {error.strerror or error}") from error


def read_tasks(path: Path, kind: type[Env] | None = None) -> list[Task]:
    """Read a task file.

    Args:
        path: the file.
        kind: environment that the tasks are wanted for. A file whose header names another environment is
            refused. Headers without an environment pass.

    Raises:
        TaskFileError: names the file, and the line and field of the fault.
    """
    try:
        text = read_regular_file(path, MAX_BYTES).decode()
    except FileNotFoundError:
        raise TaskFileError(f"{path} does not exist; envkit tasks --help says how to make one") from None
    except OSError as error:
        raise TaskFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # not UTF-8, or a path with a null byte
        raise TaskFileError(f"{path} cannot be read: {error}") from error
    if not text:
        raise TaskFileError(f"{path} is empty; expected a header line and one task per line")
    # Not `str.splitlines`: JSON texts may hold its other line separators, such as U+2028.
    lines = text.removesuffix("\n").split("\n")
    header = _object(path, 1, lines[0])
    if header.get("schema") != SCHEMA:
        raise TaskFileError(
            f"{path}, line 1, field 'schema': found {header.get('schema')!r:.60}, expected {SCHEMA!r}"
        )
    if kind is not None:
        _require_environment(path, header.get("environment"), kind)
    count = header.get("texts", 0)
    if type(count) is not int or not 0 <= count < len(lines):
        raise TaskFileError(
            f"{path}, line 1, field 'texts': found {count!r:.60}, expected a number of lines below"
        )
    texts = [_text(path, number, line) for number, line in enumerate(lines[1 : count + 1], 2)]
    tasks = [_task(path, number, line, texts) for number, line in enumerate(lines[count + 1 :], count + 2)]
    if header.get("count") != len(tasks):
        raise TaskFileError(
            f"{path}, line 1, field 'count': says {header.get('count')!r:.60} tasks and {len(tasks)} follow; "
            "the file was cut or edited, so make it again"
        )
    if not tasks:
        raise TaskFileError(f"{path} holds a header and no tasks; make it again")
    return tasks


def _require_environment(path: Path, found: object, kind: type[Env]) -> None:
    """Refuse a file of another environment. Tasks of a base class serve its subclasses as well."""
    known = [base.id for base in kind.__mro__ if issubclass(base, Env) and hasattr(base, "id")]
    if found is not None and found not in known:
        raise TaskFileError(
            f"{path} holds tasks of the environment {found!r:.60}, expected {kind.id!r}; "
            f"name that environment, or use a task file of {kind.id}"
        )


def _line(task: Task) -> str:
    return canonical(_with_base64(asdict(task))) + "\n"


def _shareable_files(task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The path-to-text mappings of a checkout's task whose texts may be shared; none of other tasks."""
    suite = task["hidden"].get("suite")
    if isinstance(suite, dict) and isinstance(suite.get("files"), dict):  # pyright: ignore[reportUnknownMemberType]
        yield from (task["files"], cast("dict[str, Any]", suite["files"]))


def _shared_texts(tasks: Sequence[Task]) -> list[str]:
    """Long texts that occur in more than one file, in order of appearance."""
    parts = ({"files": task.files, "hidden": task.hidden} for task in tasks)
    contents = (content for part in parts for files in _shareable_files(part) for content in files.values())
    counted = Counter(content for content in contents if isinstance(content, str))
    return [text for text, count in counted.items() if count > 1 and len(text) >= _MIN_SHARED]


def _with_numbers(task: dict[str, Any], numbers: Mapping[str, int]) -> dict[str, Any]:
    """Replace shared texts by their numbers, in place."""
    for files in _shareable_files(task):
        files |= {path: numbers.get(text, text) for path, text in files.items()}
    return task


def _with_base64(task: dict[str, Any]) -> dict[str, Any]:
    """Replace the contents of binary files by JSON, in place."""
    files: dict[str, Any] = task["files"]
    for path, content in files.items():
        if isinstance(content, bytes):
            files[path] = {_BASE64: base64.b64encode(content).decode()}
    return task


def _bytes(content: object) -> bytes | None:
    """The content of a binary file; ``None`` if it is not in the form of `_with_base64`."""
    fields = cast("dict[str, object]", content) if isinstance(content, dict) else {}
    text = fields.get(_BASE64)
    if len(fields) == 1 and isinstance(text, str):
        with suppress(ValueError):
            return base64.b64decode(text, validate=True)
    return None


def _json(path: Path, number: int, line: str) -> object:
    try:
        data: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f"{path}, line {number}: not JSON ({error}); make the file again") from error
    if line.count("[") + line.count("{") > MAX_DEPTH and _is_deeper(data, MAX_DEPTH):
        raise TaskFileError(
            f"{path}, line {number}: JSON nested more than {MAX_DEPTH} levels deep; make the file again"
        )
    if "\\ud" in line.lower():
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise TaskFileError(
                f"{path}, line {number}: holds half of a surrogate pair (\\ud800 to \\udfff), which is not "
                "Unicode text; make the file again"
            ) from None
    return data


def _is_deeper(data: object, levels: int) -> bool:
    """True if lists and objects are nested more than ``levels`` deep."""
    layer: list[object] = [data]
    for _ in range(levels + 1):
        nested: list[object] = []
        for value in layer:
            if isinstance(value, list):
                nested += cast("list[object]", value)
            elif isinstance(value, dict):
                nested += cast("dict[str, object]", value).values()
        layer = nested
    return any(isinstance(value, list | dict) for value in layer)


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
    for files in _shareable_files(data):
        for name, text in files.items():
            if type(text) is int:
                if not 0 <= text < len(texts):
                    raise TaskFileError(
                        f"{path}, line {number}: file {name!r} is text {text}, and there are {len(texts)}; "
                        "the file was cut or edited, so make it again"
                    )
                files[name] = texts[text]
    files: dict[str, object] = data["files"]
    for name, content in files.items():
        if isinstance(content, str):
            continue
        if (found := _bytes(content)) is None:
            raise TaskFileError(
                f"{path}, line {number}, field 'files': {name!r} is {content!r:.60}, expected a text, or "
                f'{{"{_BASE64}": ...}} for a binary file'
            )
        files[name] = found
    return Task(**{name: data[name] for name in _FIELDS})
