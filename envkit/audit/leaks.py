"""Whether what a task hides can be read by somebody who does not solve it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable, minimal_call, run_with_timeout
from envkit.audit.decompress import decompressed
from envkit.audit.instrumented import InstrumentedBackend
from envkit.audit.scanner import SandboxScanner
from envkit.types import JSON, Task

#: Shorter hidden texts are found by chance.
_LEAST_SECRET: Final = 8
#: Shorter ones stand in a system's files by chance.
_LEAST_SENTENCE: Final = 16


def hidden_stays_hidden(subject: AuditedEnv) -> str:
    """A check of `envkit.audit.runner`: look for what tasks hide in all that an agent can see or reach.

    Returns:
        What was looked for.

    Raises:
        AuditFailure: a hidden value can be read; says which and where.
        NotApplicable: no task hides anything that could be recognised.
    """
    hidden = [_secrets(subject, task) for task in subject.tasks]
    everywhere = _everywhere(subject, [secret for _, secrets in hidden for secret in secrets])
    for task, secrets in hidden:
        spelled = {text: secret for secret in secrets for text in _spellings(secret)}
        for place, data in _visible(subject, task):
            if text := next((text for text in spelled if text in data), None):
                raise _leak(task, spelled[text], place)
        sought = [text for text, secret in spelled.items() if secret not in everywhere]
        for text, place in _reachable(subject, task, sought).items():
            raise _leak(task, spelled[text], place)
    if not (count := sum(len(secrets) for _, secrets in hidden)):
        raise NotApplicable(f"no task hides a number, or a text of {_LEAST_SECRET} or more characters")
    return f"{count} hidden values, in no observation, and in no file, git history or process of a sandbox"


def _texts(value: object) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in cast("Mapping[str, object]", value).values():
            yield from _texts(part)
    elif isinstance(value, Sequence):
        for part in cast("Sequence[object]", value):
            yield from _texts(part)


def _secrets(subject: AuditedEnv, task: Task) -> tuple[Task, list[str]]:
    """The task to pose, and what of it nobody may see who does not solve it."""
    shown = (task.prompt, *task.files, *task.files.values(), *_texts(task.metadata))
    public = "\n".join(shown).encode(errors="surrogatepass")
    secrets = [
        text
        for text in _texts(task.hidden)
        if len(text) >= _LEAST_SECRET and not any(spelled in public for spelled in _spellings(text))
    ]
    if marked := _marked(subject, task):
        return marked[0], [*secrets, *marked[1]]
    return task, secrets


def _marked(subject: AuditedEnv, task: Task) -> tuple[Task, list[str]] | None:
    """The task with hidden numbers that nothing else holds, and those; ``None`` if it cannot be posed so."""
    marks: list[str] = []

    def mark(value: JSON) -> JSON:
        if isinstance(value, Mapping):
            return {key: mark(part) for key, part in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [mark(part) for part in value]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        marks.append(str(7_310_000_000 + 7919 * len(marks)))
        return int(marks[-1])

    hidden = cast("Mapping[str, JSON]", mark(task.hidden))
    if not marks:
        return None
    posed = dataclasses.replace(task, hidden=hidden)
    try:
        subject.play(posed, [subject.kind.noop_action])
    except Exception:  # its hidden numbers are more than answers
        return None
    return posed, marks


def _spellings(secret: str) -> set[bytes]:
    """How a text may stand in files and memory: as it is, in JSON, in Python's code, in wide characters."""
    texts = {secret, repr(secret)[1:-1], *(json.dumps(secret, ensure_ascii=a)[1:-1] for a in (True, False))}
    found: set[bytes] = set()
    for text, code in itertools.product(texts, ("utf-8", "latin-1", "utf-16-le", "utf-32-le")):
        with contextlib.suppress(UnicodeEncodeError):  # latin-1 has few letters, and none has half a pair
            found.add(text.encode(code))
    return found


def _leak(task: Task, secret: str, place: str) -> AuditFailure:
    return AuditFailure(f"task {task.id}: what is hidden, {secret[:40]!r}, can be read in {place}")


def _visible(subject: AuditedEnv, task: Task) -> Iterator[tuple[str, bytes]]:
    """All that an agent may see of a task that it does not solve: place, and what is there."""
    for number, actions in enumerate(([subject.kind.noop_action], subject.noise(task, 2))):
        for turn, text in enumerate(subject.play(task, actions).seen):
            yield f"observation {turn} of episode {number}", text.encode(errors="surrogatepass")
    with contextlib.closing(subject.make([task])) as env:
        env.reset(seed=0, options={"task": task.id})
        for path, data in env.sandbox.export(["**"], 2**26).items():
            yield f"the workspace's {path}", data
            for part in decompressed(data):
                is_git = ".git" in path.split("/")
                yield f"the {'git history' if is_git else 'compressed data'} in the workspace's {path}", part


def _everywhere(subject: AuditedEnv, secrets: Sequence[str]) -> set[str]:
    """Which of these are mere words: an interpreter knows them in a sandbox in which nobody has been.

    Raises:
        AuditFailure: one stands in a file there.
    """
    if not (subject.backend.isolated and secrets):
        return set()
    spelled = {text: secret for secret in secrets for text in _spellings(secret)}
    with subject.backend.create() as sandbox:
        found = SandboxScanner(sandbox).find([*spelled])
    for text, place in found.items():
        if place.startswith("the file ") and len(text) >= _LEAST_SENTENCE:
            raise AuditFailure(
                f"what is hidden, {spelled[text][:40]!r}, can be read in every sandbox, in {place}"
            )
    return {spelled[text] for text in found}


def _reachable(subject: AuditedEnv, task: Task, texts: Sequence[bytes]) -> Mapping[bytes, str]:
    """Which of these a program in the sandbox of a task can reach, in processes and files: text -> where."""
    if not texts:
        return {}
    calls = [minimal_call(tool) for tool in subject.kind.tools if not tool.ends]
    found = _looked(subject, task, calls, texts)
    # If they have ended the episode, what there was before them is looked at.
    return (found if found is not None else _looked(subject, task, [], texts)) or {}


def _looked(
    subject: AuditedEnv, task: Task, actions: Sequence[str], texts: Sequence[bytes]
) -> Mapping[bytes, str] | None:
    """What `SandboxScanner.find` finds after these actions; ``None`` if they end the episode."""
    watched = InstrumentedBackend(subject.backend, looks=True)

    def look() -> Mapping[bytes, str] | None:
        with contextlib.closing(
            subject.kind(tasks=[task], sandbox=watched, max_turns=len(actions) + 1)
        ) as env:
            env.reset(seed=0, options={"task": task.id})
            if any(any(env.step(action)[2:4]) for action in actions):
                return None
            if not env.backend.isolated:  # a look around in there would be one around this machine
                return {}
            return (watched.lookout or SandboxScanner(env.sandbox)).find(texts)

    return run_with_timeout(look, f"task {task.id}", watched.close)
