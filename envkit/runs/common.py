"""Helpers shared by the functions of the Python interface: sandbox, task files, the call as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from envkit.errors import TaskFileError, UsageError
from envkit.models import KNOWN

if TYPE_CHECKING:
    from envkit.env import Env
    from envkit.runtime.display import Display
    from envkit.sandbox import SandboxBackend
    from envkit.types import Task

#: Environment of commands and calls that do not name one.
DEFAULT_ENVIRONMENT = "code-editor"

#: Default parent of run folders.
RUNS = Path("runs")

#: Tasks, or the path of a task file.
Tasks: TypeAlias = "Sequence[Task] | Path | str"

#: Names of the backends that this process has proven to isolate.
_PROVEN: set[str] = set()


def isolated_backend(
    sandbox: SandboxBackend | str, display: Display, *, allow_unsafe: bool = False
) -> SandboxBackend:
    """Look up a sandbox backend and prove that it isolates, before anything runs in it.

    A backend that is named is proven once per process.

    Args:
        sandbox: a backend or its registered name; ``"auto"`` takes the best one of this machine.
        display: warns if the sandbox does not isolate and ``allow_unsafe`` allows it.
        allow_unsafe: accept a backend that does not claim to isolate.

    Raises:
        UsageError: no such backend, or one that does not isolate.
        SandboxUnavailable: no backend works on this machine, or this one fails its checks.
    """
    from envkit.sandbox.check import require_isolation
    from envkit.sandbox.choice import sandbox_backend

    backend = sandbox_backend(sandbox) if isinstance(sandbox, str) else sandbox
    if not backend.isolated:
        if not allow_unsafe:
            raise UsageError(
                f"sandbox {backend.name!r} does not isolate: model output would run as this user; use "
                "sandbox 'auto', or see `envkit list`"
            )
        display.say(f"sandbox {backend.name} does not isolate; model output runs as this user")
        return backend
    if not isinstance(sandbox, str) or backend.name not in _PROVEN:
        require_isolation(backend)
        if isinstance(sandbox, str):
            _PROVEN.add(backend.name)
    return backend


def load_tasks(
    kind: type[Env], tasks: Tasks | None, split: str, backend: SandboxBackend, display: Display
) -> Sequence[Task]:
    """Read named tasks, or make the environment's own tasks of a split if none are named.

    What the environment's class declares for its sandboxes is installed first, if it is not yet.

    Raises:
        TaskFileError: not a task file, or one of another environment.
        UsageError: there are no tasks, or the sandboxes cannot hold what the class declares.
        SandboxUnavailable: that cannot be installed now.
    """
    from envkit.env import registry

    backend = kind.equip(backend)
    if isinstance(tasks, str | Path):
        return registry.read_tasks_for(kind, Path(tasks))
    found = kind.tasks_of(split, backend, display=display) if tasks is None else tasks
    if not found:
        raise UsageError(f"environment {kind.id}: the {split} tasks are an empty list; expected at least one")
    if tasks is not None:
        for task in tasks:
            kind.validate_task(task)
    return found


def short_tasks(
    tasks: Mapping[type[Env], Sequence[Task]], max_chars: int
) -> tuple[dict[type[Env], list[Task]], str]:
    """Keep the tasks whose prompt and files have together at most ``max_chars`` characters.

    Returns:
        The kept tasks of each environment, and a text such as ``"312 of 6,018"``.

    Raises:
        UsageError: an environment has none.
    """
    kept: dict[type[Env], list[Task]] = {}
    for kind, given in tasks.items():
        kept[kind] = [task for task in given if task.chars <= max_chars]
        if not kept[kind]:
            raise UsageError(
                f"no task of environment {kind.id} has at most {max_chars} characters; the shortest has "
                f"{min((task.chars for task in given), default=0)}"
            )
    return kept, f"{sum(map(len, kept.values())):,} of {sum(map(len, tasks.values())):,}"


def load_train_tasks(
    kind: type[Env],
    tasks: Tasks | None,
    max_chars: int | None,
    backend: SandboxBackend,
    display: Display,
) -> Sequence[Task]:
    """Load tasks of the split ``train``, of at most ``max_chars`` characters if that is given.

    Raises:
        TaskFileError: a task is of another split; and as `load_tasks`.
        UsageError: no task is so short; and as `load_tasks`.
    """
    found = load_tasks(kind, tasks, "train", backend, display)
    require_train_split(found, tasks)
    return found if max_chars is None else short_tasks({kind: found}, max_chars)[0][kind]


def require_train_split(tasks: Sequence[Task], source: Tasks | None) -> None:
    """Raise if a task to train on is not of the train split.

    Raises:
        TaskFileError: a task is not of the split ``train``.
    """
    for task in tasks:
        if task.split != "train":
            name = f"{source}: " if isinstance(source, str | Path) else ""
            raise TaskFileError(
                f"{name}task {task.id} is of split {task.split!r}; expected 'train': held-out tasks are only "
                "for measuring"
            )


def absolute_if_path(word: str | Path) -> str:
    """Make a path absolute, so that a run can resume from another folder; a name stays as it is."""
    if word == "auto" or word in KNOWN:  # whatever lies in this folder
        return str(word)
    return str(Path(word).resolve()) if Path(word).exists() else str(word)


def command_of(function: str, subject: str) -> str:
    """Return the text of a Python call, which a report shows as the command that made it."""
    return f"envkit.{function}({subject})"
