"""Checks of an environment's own tasks: the same at every call, and no held-out task to train on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable
from envkit.display import Silent
from envkit.errors import UsageError
from envkit.grading import canonical
from envkit.types import Task

_BETWEEN_WORDS: Final = re.compile(r"[\W_]+")


def splits_are_apart(audited: AuditedEnv) -> str:
    """`make_tasks` is deterministic; ids are unique, tasks name their split, and splits share no task."""
    if not audited.own_tasks:
        raise NotApplicable("the audit was given tasks, and looks at no others")
    made: dict[str, Sequence[Task]] = {}
    for split in ("train", "heldout"):
        try:
            made[split] = _made_twice(audited, split)
        except UsageError as error:
            raise NotApplicable(str(error)) from error
    trained, held = made["train"], made["heldout"]
    if sources := sorted({task.source for task in trained} & {task.source for task in held}):
        raise AuditFailure(
            f"{len(sources)} sources are both trained on and held out, the first: {sources[0]}"
        )
    known = {_content(task): task for task in trained}
    same = [(task, known[_content(task)]) for task in held if _content(task) in known]
    if same and _begin_alike(audited, *same[0]):
        raise AuditFailure(
            f"{len(same)} of {len(held)} held-out tasks are train tasks: in prompt, files and hidden values "
            f"only case and punctuation differ; the first: {same[0][0].id} is {same[0][1].id}"
        )
    return (
        f"{len(trained)} train and {len(held)} held-out tasks are the same at every call; they share no "
        "source, and no prompt, files and hidden values"
    )


def _begin_alike(audited: AuditedEnv, one: Task, other: Task) -> bool:
    """True if two tasks begin with the same observation. A seed in the metadata may make them different."""
    first, second = (audited.play(task, [audited.kind.noop_action]).observations[0] for task in (one, other))
    return _plain(first) == _plain(second)


def _made_twice(audited: AuditedEnv, split: str) -> Sequence[Task]:
    first, again = (
        audited.kind.make_tasks(split, sandbox=audited.backend, display=Silent()) for _ in range(2)
    )
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
