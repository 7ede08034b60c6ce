"""The code editor: repair real Python functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from envkit.environments.code_editor.env import CodeEditorEnv, oracle_action
from envkit.environments.code_editor.starter import starter_tasks
from envkit.mining.taskfile import read_tasks
from envkit.registry import sandbox_backend
from envkit.sandbox import SandboxBackend
from envkit.types import Task

__all__ = ["CodeEditorEnv", "make", "oracle_action", "starter_tasks"]


def make(
    tasks: Sequence[Task] | Path | str | None = None,
    sandbox: SandboxBackend | str = "auto",
    max_turns: int = 3,
    render_mode: str | None = None,
) -> CodeEditorEnv:
    """The environment with its parts looked up; ``gymnasium.make("envkit/CodeEditor-v0")`` calls it.

    Args:
        tasks: tasks, or the path of a task file; by default the starter tasks.
        sandbox: a backend or its registered name; ``"auto"`` is the best isolated one of this machine.
        max_turns: actions until truncation.
        render_mode: ``"ansi"`` or none.

    Raises:
        TaskFileError: not a task file.
        SandboxUnavailable: code cannot be isolated on this machine.
    """
    if tasks is None:
        tasks = starter_tasks()
    elif isinstance(tasks, str | Path):
        tasks = read_tasks(Path(tasks))
    if isinstance(sandbox, str):
        sandbox = sandbox_backend(sandbox)
    return CodeEditorEnv(tasks=tasks, sandbox=sandbox, max_turns=max_turns, render_mode=render_mode)
