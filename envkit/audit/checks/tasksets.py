"""Checks of an environment's own tasks: the same at every call, and no held-out task to train on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable
from envkit.env.compare import canonical
from envkit.errors import SETUP_ERRORS, EnvkitError, UsageError
from envkit.types import Task

_BETWEEN_WORDS: Final = re.compile(r"[\W_]+")
#: Splits in words.
_NAMES: Final = {"heldout": "held-out", "test": "test"}
#: Most pairs of equal tasks that are begun, to see whether they differ by a seed.
_MAX_COMPARED: Final = 20


def splits_are_apart(audited: AuditedEnv) -> str:
    """`make_tasks` is deterministic; ids are unique, tasks name their split, and splits share no task."""
    if not audited.own_tasks:
        raise NotApplicable("the audit was given tasks, and looks at no others")
    made: dict[str, Sequence[Task]] = {}
    for split in ("train", "heldout", "test"):
        try:
            made[split] = _made_twice(audited, split)
        except SETUP_ERRORS:  # there are such tasks, and they cannot be made
            raise
        except UsageError as error:
            if split != "test":  # few environments have tasks for final reports only
                raise NotApplicable(str(error)) from error
    trained = made.pop("train")
    known: dict[bytes, list[Task]] = {}
    for task in trained:
        known.setdefault(_content(task), []).append(task)
    for split, held in made.items():
        _require_apart(audited, _NAMES[split], held, trained, known)
    counts = " and ".join(f"{len(held)} {_NAMES[split]}" for split, held in made.items())
    return (
        f"{len(trained)} train and {counts} tasks are the same at every call; they share no source, and no "
        "prompt, files and hidden values"
    )


def _require_apart(
    audited: AuditedEnv,
    name: str,
    held: Sequence[Task],
    trained: Sequence[Task],
    known: Mapping[bytes, Sequence[Task]],
) -> None:
    """Raise if tasks are trained on, too.

    Args:
        audited: plays what looks the same, because a seed in the metadata may make it different.
        name: of the split, in words.
        held: its tasks.
        trained: the train tasks.
        known: the train tasks by `_content`.

    Raises:
        AuditFailure: a source or a task is shared.
    """
    if sources := sorted({task.source for task in trained} & {task.source for task in held}):
        raise AuditFailure(f"{len(sources)} sources are of train and {name} tasks, the first: {sources[0]}")
    same = [(task, other) for task in held for other in known.get(_content(task), ())]
    # A task with its own number in the metadata is most likely the same as one that has it, too.
    same.sort(key=lambda pair: pair[0].metadata != pair[1].metadata)
    for task, other in same[:_MAX_COMPARED]:
        if _begin_alike(audited, task, other):
            count = len({held_out.id for held_out, _ in same})
            raise AuditFailure(
                f"{count} of {len(held)} {name} tasks are train tasks: in prompt, files and hidden values "
                f"only case and punctuation differ; the first: {task.id} is {other.id}"
            )


def _begin_alike(audited: AuditedEnv, one: Task, other: Task) -> bool:
    """True if two tasks begin with the same observation. A seed in the metadata may make them different."""
    first, second = (audited.play(task, [audited.kind.noop_action]).observations[0] for task in (one, other))
    return _plain(first) == _plain(second)


def _made_twice(audited: AuditedEnv, split: str) -> Sequence[Task]:
    """Make the tasks of a split twice.

    Raises:
        AuditFailure: they cannot be made, are others at the second call, share ids or name another split.
        UsageError: there are none.
    """
    try:
        first, again = (audited.kind.tasks_of(split, audited.backend) for _ in range(2))
    except EnvkitError:
        raise
    except Exception as error:
        raise AuditFailure(
            f"make_tasks({split!r}) raises {type(error).__name__}: {error}; expected tasks, or a UsageError "
            "if there are none"
        ) from error
    if [*first] != [*again]:
        raise AuditFailure(f"two calls of make_tasks give other {split} tasks; draw them from a seed")
    if len({task.id for task in first}) != len(first):
        raise AuditFailure(f"{len(first)} {split} tasks have {len({task.id for task in first})} ids")
    if others := {task.split for task in first} - {split}:
        raise AuditFailure(f"a task of split {split} names the split {sorted(others)[0]!r}")
    return first


def _content(task: Task) -> bytes:
    """Digest of what a task asks, gives and hides, whatever its id, its metadata and its punctuation are."""
    files = {
        path: content if isinstance(content, str) else content.hex() for path, content in task.files.items()
    }
    parts: Sequence[str | Mapping[str, object]] = (task.prompt, files, task.hidden)
    return hashlib.sha256(_plain(canonical([*parts])).encode(errors="surrogatepass")).digest()


def _plain(text: str) -> str:
    """The words of a text, whatever their case and what stands between them."""
    return _BETWEEN_WORDS.sub(" ", text.casefold())
