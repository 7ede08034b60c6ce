"""Task files: atomic writing, and errors that name the fault."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envkit.env.taskfile import MAX_DEPTH, SCHEMA, digest, read_tasks, write_tasks
from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.sql_desk import SqlDeskEnv
from envkit.errors import TaskFileError
from envkit.types import Task


def task(number: int, text: str = "é") -> Task:
    facts = {"package": "pkg", "version": "1", "source": "pkg:f"}
    return Task(
        f"pkg/f/{number}",
        "train",
        "",
        {"solution.py": text},
        facts,
        {"reference": "x", "killers": [[["1"], {}]]},
    )


TASKS = [task(1), task(2)]


def test_tasks_survive_writing_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "made" / "tasks.jsonl"
    written_digest = write_tasks(path, TASKS, seed=3)
    assert read_tasks(path) == TASKS
    assert written_digest == digest(TASKS) == digest(read_tasks(path))
    header, *lines = path.read_text().splitlines()
    assert json.loads(header) == {"schema": SCHEMA, "seed": 3, "packages": {"pkg": "1"}, "count": 2}
    assert len(lines) == 2
    assert os.listdir(path.parent) == ["tasks.jsonl"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_a_newline_ends_a_line(tmp_path: Path, end: str) -> None:
    """Other tools write other line separators of Unicode as they are."""
    tasks = [task(1, "one\u2028two\u2029three\x85four\x7f\u00a0"), task(2)]
    write_tasks(tmp_path / "made.jsonl", tasks, seed=0)
    lines = [json.loads(line) for line in (tmp_path / "made.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(line, ensure_ascii=False) + end for line in lines)
    for name, content in (("whole", text), ("without the last newline", text.removesuffix(end))):
        (tmp_path / name).write_bytes(content.encode())
        assert read_tasks(tmp_path / name) == tasks


def test_binary_files_survive_byte_by_byte(tmp_path: Path) -> None:
    every = bytes(range(256))
    tasks = [replace(task(1), files={"a.bin": every, "b.bin": b"", "c.txt": "é", "d.txt": ""}), task(2)]
    assert write_tasks(tmp_path / "tasks.jsonl", tasks, seed=0) == digest(
        read_tasks(tmp_path / "tasks.jsonl")
    )
    assert read_tasks(tmp_path / "tasks.jsonl") == tasks
    assert tasks[0].files["a.bin"] == every, "writing leaves the tasks alone"
    as_text = [replace(tasks[0], files={**tasks[0].files, "b.bin": ""}), task(2)]
    assert digest(as_text) != digest(tasks)
    assert tasks[0].chars == 1


def test_files_and_digests_of_tasks_with_text_stay_as_they_were(tmp_path: Path) -> None:
    assert digest(TASKS) == "51062bb063603ae3779b04b7b24a10c304deca0109258835055619ed832b9d7f"
    write_tasks(tmp_path / "tasks.jsonl", TASKS, seed=0)
    written = hashlib.sha256((tmp_path / "tasks.jsonl").read_bytes()).hexdigest()
    assert written == "2018b1c0501949cd73f1891e321ed08c12d90adda1546ca2f675e80c723097b2"


def test_the_same_tasks_make_the_same_bytes(tmp_path: Path) -> None:
    write_tasks(tmp_path / "a", TASKS, seed=0)
    write_tasks(tmp_path / "b", [task(1), task(2)], seed=0)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert digest(TASKS) != digest(TASKS[::-1])


def test_a_different_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    write_tasks(path, TASKS, seed=0)
    write_tasks(path, TASKS, seed=0)
    with pytest.raises(TaskFileError, match="exists and differs"):
        write_tasks(path, [task(3)], seed=0)
    assert read_tasks(path) == TASKS


def test_writing_no_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match="no tasks to write"):
        write_tasks(tmp_path / "tasks.jsonl", [], seed=0)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TaskFileError, match=r"cannot write .*: No space left on device"):
        write_tasks(tmp_path / "tasks.jsonl", TASKS, seed=0)
    assert os.listdir(tmp_path) == []


Damage = Callable[[list[str]], list[str]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [], "is empty"),
        (lambda lines: ["{}", *lines[1:]], "line 1, field 'schema': found None"),
        (lambda lines: [lines[0].replace("tasks/1", "tasks/9"), *lines[1:]], "found 'envkit.tasks/9'"),
        (lambda lines: [lines[0], lines[1], lines[2][:40]], "line 3: not JSON"),
        (lambda lines: [lines[0], "[1]", lines[2]], "line 2: found list, expected an object"),
        (lambda lines: lines[:2], "field 'count': says 2 tasks and 1 follow"),
        (lambda lines: [lines[0].replace('"count":2', '"count":0')], "no tasks"),
        (
            lambda lines: [lines[0], lines[1].replace('"files"', '"flies"'), lines[2]],
            "line 2, field 'files': found nothing",
        ),
        (
            lambda lines: [lines[0], lines[1], lines[2].replace('"train"', "7")],
            "line 3, field 'split': found int",
        ),
    ],
)
def test_faults_are_named(tmp_path: Path, damage: Damage, message: str) -> None:
    path = tmp_path / "tasks.jsonl"
    write_tasks(path, TASKS, seed=0)
    path.write_text("".join(line + "\n" for line in damage(path.read_text().splitlines())))
    with pytest.raises(TaskFileError, match=message) as fault:
        read_tasks(path)
    assert str(path) in str(fault.value)


def checkout_task(number: int) -> Task:
    """Return a task that is graded by a checkout's suite."""
    suite = {"files": {"test_a.py": "test " * 100, "short.py": "x"}, "wanted": [f"test_a.py::{number}"]}
    return replace(task(number, f"{number} " * 200), files={"a.py": f"{number} " * 200, "b.py": "b" * 300},
                   hidden={"suite": suite})  # fmt: skip


def test_texts_shared_by_a_checkouts_tasks_are_stored_once(tmp_path: Path) -> None:
    tasks, path = [checkout_task(number) for number in range(20)], tmp_path / "tasks.jsonl"
    assert write_tasks(path, tasks, seed=0) == digest(tasks)
    assert read_tasks(path) == tasks
    text = path.read_text()
    assert (text.count("b" * 300), text.count(json.dumps("test " * 100))) == (1, 1)
    header, *lines = text.splitlines()
    assert json.loads(header)["texts"] == 2
    assert len(lines) == 22
    task_line = json.loads(lines[2])
    assert task_line["files"] == {"a.py": "0 " * 200, "b.py": 0}
    assert task_line["hidden"]["suite"]["files"] == {"test_a.py": 1, "short.py": "x"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"texts":2', '"texts":99', r"line 1, field 'texts': found 99"),
        ('"texts":2', '"texts":"2"', r"line 1, field 'texts': found '2'"),
        ('"texts":2', '"texts":1', r"line 3: found str, expected an object"),
        ('"texts":2', '"texts":3', r"line 4: found dict, expected a text"),
        ('"b.py":0', '"b.py":2', r"line 4: file 'b.py' is text 2, and there are 2"),
        ('"b.py":0', '"b.py":-1', r"line 4: file 'b.py' is text -1"),
    ],
)
def test_faults_of_shared_texts_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "tasks.jsonl"
    write_tasks(path, [checkout_task(1), checkout_task(2)], seed=0)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(TaskFileError, match=message):
        read_tasks(path)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match="does not exist; envkit tasks --help says how"):
        read_tasks(tmp_path / "absent.jsonl")
    with pytest.raises(TaskFileError, match="cannot be read"):
        read_tasks(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(TaskFileError, match="cannot be read"):
        read_tasks(tmp_path / "binary")


def test_a_pipe_or_device_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(TaskFileError, match=f"^{path} cannot be read: .*expected a file"):
            read_tasks(path)


def test_a_huge_file_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jsonl"
    with path.open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(TaskFileError, match=r"it is larger than 268,435,456 bytes; use a smaller file"):
        read_tasks(path)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version":"1"', f'"version":{nested(100_000)}', "line 2: not JSON"),
        ('"version":"1"', f'"version":{nested(MAX_DEPTH)}', "line 2: JSON nested more than 100 levels"),
        ("pkg/f/1", r"\ud800", "line 2: holds half of a surrogate pair"),
        ("pkg/f/1", r"\uDFff", "line 2: holds half of a surrogate pair"),
        *(
            (
                '"solution.py":"',
                f'"solution.py":{bad},"other.py":"',
                "'solution.py' is .*, expected a text, or",
            )
            for bad in (
                "7",
                "{}",
                '{"base64":7}',
                '{"base64":"%%"}',
                '{"base64":"AA"}',
                '{"base64":"","x":1}',
            )
        ),
        ('"count":2', '"count":"2"', "line 1, field 'count': says '2' tasks and 2 follow"),
        ('"schema":', f'"texts":{"9" * 5000},"schema":', "line 1: not JSON"),
    ],
)
def test_values_that_cannot_be_used_later_are_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "tasks.jsonl"
    write_tasks(path, TASKS, seed=0)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(TaskFileError, match=message):
        read_tasks(path)


def test_valid_surrogate_pairs_and_moderate_nesting_are_read(tmp_path: Path) -> None:
    deep = replace(task(1, "\U0001f600"), metadata={"value": json.loads(nested(MAX_DEPTH - 5))})
    path = tmp_path / "tasks.jsonl"
    write_tasks(path, [deep], seed=0)
    assert "\\ud83d" in path.read_text()
    assert read_tasks(path) == [deep]


def test_a_file_of_another_environment_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "code.jsonl"
    write_tasks(path, TASKS, seed=0, environment="code-editor")
    assert json.loads(path.read_text().splitlines()[0])["environment"] == "code-editor"
    assert read_tasks(path) == read_tasks(path, CodeEditorEnv) == TASKS
    with pytest.raises(TaskFileError, match="the environment 'code-editor', expected 'sql-desk'"):
        read_tasks(path, SqlDeskEnv)


def test_a_file_of_a_base_environment_or_without_one_is_accepted(tmp_path: Path) -> None:
    class Derived(SqlDeskEnv):  # type: ignore[misc]
        id = "derived"

    write_tasks(tmp_path / "base", TASKS, seed=0, environment="sql-desk")
    write_tasks(tmp_path / "old", TASKS, seed=0)
    for name in ("base", "old"):
        assert read_tasks(tmp_path / name, Derived) == TASKS


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths to every value inside JSON data."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_in(item, (*path, key))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated_json(draw: st.DrawFn, text: str) -> bytes:
    """A task file with one value of one line replaced or removed."""
    lines = text.splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    data = {"line": json.loads(lines[number])}
    *parents, last = draw(st.sampled_from([path for path in paths_in(data) if path]))
    holder: Any = data
    for key in parents:
        holder = holder[key]
    if draw(st.booleans()) and len(parents) > 0:
        del holder[last]
    else:
        holder[last] = draw(json_values)
    lines[number] = json.dumps(data["line"])
    return "".join(f"{line}\n" for line in lines).encode()


@st.composite
def mutated_bytes(draw: st.DrawFn, text: str) -> bytes:
    """A task file with some bytes replaced."""
    raw = text.encode()
    start = draw(st.integers(0, len(raw)))
    end = draw(st.integers(start, min(len(raw), start + 40)))
    return raw[:start] + draw(st.binary(max_size=20)) + raw[end:]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    made, path = folder / "mutated-from.jsonl", folder / "mutated.jsonl"
    write_tasks(made, [checkout_task(1), checkout_task(2), task(3)], seed=0, environment="code-editor")
    text = made.read_text()
    path.write_bytes(data.draw(mutated_json(text) | mutated_bytes(text)))
    try:
        found = read_tasks(path, CodeEditorEnv)
    except TaskFileError as fault:
        message = str(fault)
    else:
        message = f"{path}: {len(found)} tasks with digest {digest(found)}"
        for read in found:
            read.id.encode()
    assert str(path) in message
    assert "\n" not in message
