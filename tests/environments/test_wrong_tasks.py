"""Task files of another environment, or with wrong hidden fields, are refused before any work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envkit import SandboxBackend, Task, TaskFileError
from envkit.audit import certificate
from envkit.cli.main import main
from envkit.env import registry
from envkit.env.taskfile import write_tasks
from envkit.environments.code_editor import starter_tasks
from envkit.environments.service_desk.tasks import generate as service_tasks
from envkit.environments.sql_desk.tasks import generate as sql_tasks

EXAMPLE_TASKS = {
    "code-editor": starter_tasks()[0],
    "service-desk": service_tasks("starter")[0],
    "sql-desk": sql_tasks("starter")[0],
}


def write_task(folder: Path, task: Task) -> Path:
    path = folder / "tasks.jsonl"
    write_tasks(path, [task], 0)
    return path


@pytest.mark.parametrize("name", EXAMPLE_TASKS)
@pytest.mark.parametrize("other", EXAMPLE_TASKS)
def test_a_task_of_another_environment_is_refused_with_its_name(
    tmp_path: Path, backend: SandboxBackend, name: str, other: str
) -> None:
    path = write_task(tmp_path, EXAMPLE_TASKS[other])
    if name == other:
        assert [*registry.make(name, path, backend).tasks] == [EXAMPLE_TASKS[other].id]
        return
    with pytest.raises(TaskFileError) as raised:
        registry.make(name, path, backend)
    message = str(raised.value)
    assert message.startswith(f"{path}: not a task of {name}: task {EXAMPLE_TASKS[other].id}: ")
    assert f"it is a task of {other}" in message
    assert "\n" not in message
    with pytest.raises(TaskFileError, match=f"task {EXAMPLE_TASKS[other].id}: "):
        registry.environment(name)(tasks=[EXAMPLE_TASKS[other]], sandbox=backend)


@pytest.mark.parametrize("name", EXAMPLE_TASKS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda hidden: {},
        lambda hidden: dict([*hidden.items()][1:]),
        lambda hidden: {**hidden, "unknown": 1},
        lambda hidden: dict.fromkeys(hidden, 7),
        lambda hidden: dict.fromkeys(hidden, None),
    ],
    ids=["empty", "a field missing", "a field too many", "numbers", "nulls"],
)
def test_wrong_hidden_fields_are_named(
    backend: SandboxBackend, name: str, damage: Callable[[Any], Any]
) -> None:
    task = replace(EXAMPLE_TASKS[name], hidden=damage(EXAMPLE_TASKS[name].hidden))
    with pytest.raises(TaskFileError, match=f"task {task.id}: .*hidden"):
        registry.environment(name)(tasks=[task], sandbox=backend)


@pytest.mark.parametrize("name", EXAMPLE_TASKS)
def test_a_task_without_its_file_is_refused(backend: SandboxBackend, name: str) -> None:
    task = replace(EXAMPLE_TASKS[name], files={})
    with pytest.raises(TaskFileError, match=f"task {task.id}: files has no "):
        registry.environment(name)(tasks=[task], sandbox=backend)


@pytest.mark.parametrize("name", EXAMPLE_TASKS)
def test_a_binary_file_where_text_is_needed_is_refused(backend: SandboxBackend, name: str) -> None:
    files = {path: content.encode() for path, content in EXAMPLE_TASKS[name].files.items()}  # type: ignore[union-attr]
    task = replace(EXAMPLE_TASKS[name], files=files)
    with pytest.raises(
        TaskFileError, match=rf"task {task.id}: '.*' is binary, [\d,]+ bytes; expected .*, as text"
    ):
        registry.environment(name)(tasks=[task], sandbox=backend)


COMMANDS = {
    "play": ("play", "sql-desk", "--tasks"),
    "check": ("tasks", "check", "--env", "sql-desk"),
    "bench": ("bench", "--env", "sql-desk", "--agent", "oracle", "--tasks"),
    "audit": ("audit", "sql-desk", "--tasks"),
    "train": ("train", "--env", "sql-desk", "--minutes", "1", "--unaudited", "--tasks"),
}


@pytest.mark.parametrize("hidden", [None, {}], ids=["of another environment", "with nothing hidden"])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_commands_refuse_wrong_tasks_in_one_line_and_write_no_certificate(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    hidden: Any,
) -> None:
    task = (
        EXAMPLE_TASKS["code-editor"] if hidden is None else replace(EXAMPLE_TASKS["sql-desk"], hidden=hidden)
    )
    path = write_task(tmp_path, task)
    monkeypatch.setattr(certificate, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(sys, "argv", ["envkit", *command, str(path)])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "not a task of sql-desk" in error
    assert "Traceback" not in error
    assert not (tmp_path / "cache").exists()
