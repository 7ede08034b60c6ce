"""Task files: whole or absent, and every fault named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from envkit.errors import TaskFileError
from envkit.taskfile import SCHEMA, digest, read_tasks, write_tasks
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


def test_tasks_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "made" / "tasks.jsonl"
    said = write_tasks(path, TASKS, seed=3)
    assert read_tasks(path) == TASKS
    assert said == digest(TASKS) == digest(read_tasks(path))
    header, *lines = path.read_text().splitlines()
    assert json.loads(header) == {"schema": SCHEMA, "seed": 3, "packages": {"pkg": "1"}, "count": 2}
    assert len(lines) == 2
    assert os.listdir(path.parent) == ["tasks.jsonl"]


def test_the_same_tasks_make_the_same_bytes(tmp_path: Path) -> None:
    write_tasks(tmp_path / "a", TASKS, seed=0)
    write_tasks(tmp_path / "b", [task(1), task(2)], seed=0)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert digest(TASKS) != digest(TASKS[::-1])


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    write_tasks(path, TASKS, seed=0)
    write_tasks(path, TASKS, seed=0)
    with pytest.raises(TaskFileError, match="exists and differs"):
        write_tasks(path, [task(3)], seed=0)
    assert read_tasks(path) == TASKS


def test_no_tasks_make_no_file(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match="no tasks to write"):
        write_tasks(tmp_path / "tasks.jsonl", [], seed=0)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TaskFileError, match=r"cannot write .*: No space left on device"):
        write_tasks(tmp_path / "tasks.jsonl", TASKS, seed=0)
    assert os.listdir(tmp_path) == []


Spoil = Callable[[list[str]], list[str]]


@pytest.mark.parametrize(
    ("spoil", "message"),
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
def test_faults_are_named(tmp_path: Path, spoil: Spoil, message: str) -> None:
    path = tmp_path / "tasks.jsonl"
    write_tasks(path, TASKS, seed=0)
    path.write_text("".join(line + "\n" for line in spoil(path.read_text().splitlines())))
    with pytest.raises(TaskFileError, match=message) as fault:
        read_tasks(path)
    assert str(path) in str(fault.value)


def suited(number: int) -> Task:
    """A task of a checkout."""
    suite = {"files": {"test_a.py": "test " * 100, "short.py": "x"}, "wanted": [f"test_a.py::{number}"]}
    return replace(task(number, f"{number} " * 200), files={"a.py": f"{number} " * 200, "b.py": "b" * 300},
                   hidden={"suite": suite})  # fmt: skip


def test_what_a_checkouts_tasks_share_stands_once(tmp_path: Path) -> None:
    tasks, path = [suited(number) for number in range(20)], tmp_path / "tasks.jsonl"
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
    write_tasks(path, [suited(1), suited(2)], seed=0)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(TaskFileError, match=message):
        read_tasks(path)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match="does not exist; make it with: envkit tasks mine"):
        read_tasks(tmp_path / "absent.jsonl")
    with pytest.raises(TaskFileError, match="cannot be read"):
        read_tasks(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(TaskFileError, match="cannot be read"):
        read_tasks(tmp_path / "binary")
