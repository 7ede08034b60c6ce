"""Environments by name: their classes, instances, task files and Gymnasium ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from envkit.env import Env
from envkit.env.taskfile import read_tasks
from envkit.errors import RegistryError, TaskFileError
from envkit.runtime.plugins import load, names, points
from envkit.sandbox.choice import sandbox_backend

if TYPE_CHECKING:
    from envkit.sandbox import SandboxBackend
    from envkit.types import Task

#: Versions in the Gymnasium ids of envkit's environments. Others have the major version of their package.
_VERSIONS = {"code-editor": 0, "service-desk": 0, "sql-desk": 3, "sql-desk-postgres": 3}


def environment(name: str) -> type[Env]:
    """Load the environment class that is registered under a name.

    Args:
        name: the environment's. ``NAME@HARNESS`` is the environment played by a harness: the name of one that
            envkit ships, or the path of a TOML file; see `envkit.env.harness`.

    Raises:
        RegistryError: no such name, or the object is not an environment of that id.
        ConfigError: there is no such harness, its file is wrong, or the environment is played by tools.
    """
    name, at, harness = name.partition("@")
    if at:
        from envkit.env.harness import harnessed, load_harness

        return harnessed(environment(name), load_harness(harness))
    found = load("environment", name)
    if not (isinstance(found, type) and issubclass(found, Env)):
        raise RegistryError(f"environment {name!r} is {found!r}; expected a subclass of envkit.Env")
    if found.id != name:
        raise RegistryError(
            f"environment {name!r} has the id {found.id!r}; give its entry point the same name"
        )
    return found


def make(
    name: str,
    tasks: Sequence[Task] | Path | str | None = None,
    sandbox: SandboxBackend | str = "auto",
    split: str = "starter",
    **options: Any,
) -> Env:
    """Make an environment from names; ``gymnasium.make("envkit/CodeEditor-v0")`` calls this.

    Args:
        name: name of the environment.
        tasks: tasks, or the path of a task file; by default the environment's own tasks of ``split``.
        sandbox: a backend or its registered name; ``"auto"`` for the best isolated one on this machine.
        split: ``"starter"``, ``"train"``, ``"heldout"``, or ``"test"`` if there is one.
        options: further arguments of the environment, such as ``max_turns`` and ``render_mode``.

    Raises:
        RegistryError: no environment or sandbox of that name.
        TaskFileError: not a task file, or one of another environment.
        SandboxUnavailable: code cannot be isolated on this machine.
    """
    kind = environment(name)
    backend = kind.equip(sandbox_backend(sandbox, kind.image) if isinstance(sandbox, str) else sandbox)
    if tasks is None:
        tasks = kind.tasks_of(split, backend)
    elif isinstance(tasks, str | Path):
        tasks = read_tasks_for(kind, Path(tasks))
    return kind(tasks=tasks, sandbox=backend, **options)


def read_tasks_for(kind: type[Env], path: Path) -> list[Task]:
    """Read a task file, and check that an environment can pose every task in it.

    Raises:
        TaskFileError: not a task file, or one of another environment, which is named if it is installed.
    """
    tasks = read_tasks(path, kind)
    for task in tasks:
        try:
            kind.validate_task(task)
        except TaskFileError as error:
            fitting = [name for name in names("environment") if name != kind.id and _accepts(name, task)]
            hint = (
                f"it is a task of {' or '.join(fitting)}, so pass that as the environment"
                if fitting
                else f"make the file again for {kind.id}"
            )
            raise TaskFileError(f"{path}: not a task of {kind.id}: {error}; {hint}") from error
    return tasks


def _accepts(name: str, task: Task) -> bool:
    """True if the environment checks its tasks and this one passes."""
    try:
        kind = environment(name)
        kind.validate_task(task)
    except Exception:  # a plugin that cannot be loaded is not a candidate
        return False
    return kind.validate_task.__func__ is not Env.validate_task.__func__


def register_gymnasium() -> None:
    """Register every environment with Gymnasium, such as ``gymnasium.make("envkit/CodeEditor-v0")``.

    Ids consist of name and version, so no environment is loaded here. Gymnasium has no plugin hook since 1.0,
    so ``import envkit`` calls this function. A program that does not import envkit can write
    ``gymnasium.make("envkit:envkit/CodeEditor-v0")``.
    """
    for name, point in points("environment").items():
        if re.fullmatch(r"[\w-]+", name):  # Gymnasium accepts no other names
            words = "".join(word.capitalize() for word in name.split("-"))
            id_ = f"envkit/{words}-v{_version(name, point)}"
            gymnasium.register(id_, "envkit.env.registry:make", order_enforce=False, kwargs={"name": name})


def _version(name: str, point: EntryPoint) -> int:
    if name in _VERSIONS:
        return _VERSIONS[name]
    major = re.match(r"\d+", point.dist.version) if point.dist else None
    return int(major[0]) if major else 0
