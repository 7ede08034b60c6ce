"""Cases: episodes that once earned a reward without the work. An audit plays them again.

They are kept as a task file, `CASES`, whose tasks have actions and seed in ``metadata["attack"]``: beside the
environment's module, and on this machine in the cache.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter

from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable
from envkit.env import Env
from envkit.env.taskfile import digest, read_tasks, write_tasks
from envkit.errors import TaskFileError
from envkit.runtime.cache import cache_dir
from envkit.runtime.store import waiting_lock
from envkit.types import Task

#: Name of the file in an environment's own package.
CASES: Final = "attacks.jsonl"
_ATTACK: Final = "attack"
_ACTIONS: Final = TypeAdapter(Annotated[tuple[str, ...], Field(min_length=1)])
#: What `write_cases` adds to the id of a task.
_NUMBER: Final = re.compile(r"#\d+\Z")


@dataclass(frozen=True, slots=True)
class Case:
    """An episode that earned a reward without the work.

    Args:
        task: its task.
        actions: what the agent said, turn by turn.
        seed: of ``reset``.
    """

    task: Task
    actions: tuple[str, ...]
    seed: int = 0


def write_cases(path: Path, cases: Sequence[Case], environment: str) -> None:
    """Write cases to a new file.

    Raises:
        TaskFileError: see `envkit.env.taskfile.write_tasks`.
    """
    tasks = [_as_task(case) for case in cases]
    numbered = [replace(task, id=f"{task.id}#{number}") for number, task in enumerate(tasks)]
    write_tasks(path, numbered, 0, environment)


def keep_cases(cases: Sequence[Case], kind: type[Env]) -> Path:
    """Add cases to those that were found on this machine; returns the path of the file.

    Raises:
        TaskFileError: the file is damaged, or cannot be written.
        StoreError: its folder cannot be locked.
    """
    path = cached_cases(kind)
    with waiting_lock(path.parent):
        known = read_cases(path, kind) if path.exists() else []
        different = {digest([_as_task(case)]): case for case in [*known, *cases]}
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        write_cases(fresh, [*different.values()], kind.id)
        fresh.replace(path)
    return path


def _as_task(case: Case) -> Task:
    """The task that a case is stored as, without its number."""
    attack = {"actions": case.actions, "seed": case.seed}
    task_id = _NUMBER.sub("", case.task.id)
    return replace(case.task, id=task_id, metadata={**case.task.metadata, _ATTACK: attack})


def read_cases(path: Path, kind: type[Env]) -> list[Case]:
    """Read a file of cases.

    Raises:
        TaskFileError: it is no task file of this environment, or a task has no actions.
    """
    found: list[Case] = []
    for task in read_tasks(path, kind):
        attack: Any = task.metadata.get(_ATTACK)
        try:
            actions, seed = _ACTIONS.validate_python(attack["actions"]), int(attack["seed"])
        except (KeyError, TypeError, ValueError) as error:
            raise TaskFileError(
                f"{path}: task {task.id} has {attack!r} in metadata.{_ATTACK}; expected a list of actions "
                "and a seed"
            ) from error
        found.append(Case(task, actions, seed))
    return found


def cached_cases(kind: type[Env]) -> Path:
    """Path of the cases that were found on this machine."""
    return cache_dir() / "certificates" / f"{kind.id}.{CASES}"


def known_cases(kind: type[Env]) -> tuple[list[Case], list[str]]:
    """The cases of an environment: those in its package, and those found on this machine.

    Returns:
        the cases, and for each one that the environment cannot pose any more, file and reason.
    """
    shipped = Path(inspect.getfile(kind)).resolve().with_name(CASES)
    found, stale = list[Case](), list[str]()
    for path in (shipped, cached_cases(kind)):
        for case in read_cases(path, kind) if path.exists() else ():
            try:
                kind.validate_task(case.task)
            except TaskFileError as error:
                stale.append(f"{path}: {error}")
            else:
                found.append(case)
    return found, stale


def replay_cases(audited: AuditedEnv) -> str:
    """Play all known cases again. Returns a summary.

    Raises:
        AuditFailure: one still counts as solved, and fails a held-out check or meets none.
        NotApplicable: there are no cases.
    """
    cases, stale = known_cases(audited.kind)
    left_out = f"; {len(stale)} cannot be posed any more, the first: {stale[0]}" if stale else ""
    if not cases:
        raise NotApplicable(f"no attack has found a way yet; see envkit audit --attack-by-training{left_out}")
    for case in cases:
        episode = audited.play(case.task, case.actions, seed=case.seed, held_out=True)
        held_out: dict[str, float] = episode.info.get("held_out", {})
        failed = [name for name, score in held_out.items() if score < 1]
        if episode.info["solved"] and (failed or not held_out):
            how = f"fails {failed[0]}" if failed else "no held-out check tells any more that it is an attack"
            raise AuditFailure(
                f"an attack that training found still earns {episode.reward:g} on task {case.task.id}, and "
                f"{how}: {case.actions[-1][:200]!r}"
            )
    return f"{len(cases)} attacks that training found earn nothing any more{left_out}"
