"""The audit check for leaks: can an agent read a task's hidden values without solving the task?"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

from envkit.audit.actions.words import minimal_call
from envkit.audit.audited_env import (
    AuditedEnv,
    AuditFailure,
    NotApplicable,
    run_with_timeout,
)
from envkit.audit.instrumented import InstrumentedBackend
from envkit.audit.leaks.data_rules import rule_in_file
from envkit.audit.leaks.decompress import decompressed
from envkit.audit.leaks.scanner import SandboxScanner
from envkit.audit.leaks.spellings import spellings, stored
from envkit.env.tools import ToolCall, parse_calls
from envkit.sandbox import DATA
from envkit.types import JSON, Task

#: Shortest hidden text to search for, in characters. Shorter ones occur by chance.
_MIN_SECRET_CHARS: Final = 8
#: Shortest text, in bytes, that an operating system's files do not hold by chance.
_MIN_SENTENCE_BYTES: Final = 16
#: Most tasks whose hidden values are looked for in the class's data.
_MAX_TASKS: Final = 50


def find_leaks(audited: AuditedEnv) -> str:
    """Search for hidden values in everything that an agent can see or reach. Returns a summary.

    Raises:
        AuditFailure: a hidden value can be read; says which one and where.
        NotApplicable: no task hides a value that could be recognised.
    """
    _require_no_answers_in_data(audited)
    hidden = [_secrets(audited, task) for task in audited.tasks]
    everything = [secret for _, secrets in hidden for secret in secrets]
    in_data = _in_data(audited, everything)
    common = _common_words(audited, everything)
    for task, secrets in hidden:
        # An action may read the data, and so may a program.
        after_actions = [secret for secret in secrets if secret not in in_data]
        ways = {False: _ways(task, secrets), True: _ways(task, after_actions)}
        for place, data, follows_action in _visible(audited, task, secrets):
            secret_of, spelled = ways[follows_action]
            if text := next((text for text in secret_of if text in data), None):
                raise _leak(task, secret_of[text], place)
            lower = data.lower()
            if text := next((text for text in spelled if text in lower), None):
                raise _leak(task, spelled[text][0], f"{place}, {spelled[text][1]}")
        secret_of, _ = ways[True]
        sought = [text for text, secret in secret_of.items() if secret not in common]
        for text, place in _reachable(audited, task, _calls(audited, task, secrets), sought).items():
            raise _leak(task, secret_of[text], place)
    if not everything:
        raise NotApplicable(f"no task hides a number, or a text of {_MIN_SECRET_CHARS} or more characters")
    count = sum(secret not in in_data for secret in everything)
    found = f"{count} hidden values, in no observation, and in no file, git history or process of a sandbox"
    return f"{found}; {len(in_data)} others in `data`, where nothing names their tasks" if in_data else found


def _data(audited: AuditedEnv) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file of the class's data, and again for what is compressed in it."""
    for top in audited.backend.contents.data:
        for path in (top, *sorted(top.rglob("*"))):
            if path.is_file():
                name, data = f"{DATA}/{path.relative_to(top.parent).as_posix()}", path.read_bytes()
                yield from ((name, part) for part in (data, *decompressed(data)))


def _require_no_answers_in_data(audited: AuditedEnv) -> None:
    """Search the class's data for hidden values as they are, because it was made before any is replaced.

    Raises:
        AuditFailure: a file tells hidden values of the tasks by a rule.
    """
    tasks = audited.spread(_MAX_TASKS)
    for name, data in _data(audited):
        if rule := rule_in_file(name, data, tasks):
            raise AuditFailure(f"the file {name} {rule}; agents can read all of `data`")


def _in_data(audited: AuditedEnv, secrets: Sequence[str]) -> set[str]:
    """The short secrets that the class's data holds. No rule leads to them: to look them up is the work."""
    short = {text: secret for secret in secrets for text in stored(secret) if len(text) < _MIN_SENTENCE_BYTES}
    return {secret for _, data in _data(audited) for text, secret in short.items() if text in data}


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


def _secrets(audited: AuditedEnv, task: Task) -> tuple[Task, list[str]]:
    """The task to pose, and those of its hidden texts that no public field contains."""
    public = _public(task)
    secrets = [
        text
        for text in _texts(task.hidden)
        if len(text) >= _MIN_SECRET_CHARS and not any(encoded in public for encoded in stored(text))
    ]
    if marked := _with_marked_numbers(audited, task):
        return marked[0], [*secrets, *marked[1]]
    return task, secrets


def _public(task: Task) -> bytes:
    """All that a task shows."""
    shown = (task.prompt, *task.files, *task.files.values(), *_texts(task.metadata))
    return b"\n".join(one if isinstance(one, bytes) else one.encode(errors="surrogatepass") for one in shown)


def _ways(task: Task, secrets: Sequence[str]) -> tuple[Mapping[bytes, str], Mapping[bytes, tuple[str, str]]]:
    """The secrets as files and memory hold them, each with the secret; and see `_spelled`."""
    return {text: secret for secret in secrets for text in stored(secret)}, _spelled(task, secrets)


def _spelled(task: Task, secrets: Sequence[str]) -> Mapping[bytes, tuple[str, str]]:
    """Other spellings of the secrets in small letters, each with the secret and the way it is spelled.

    Those that the task shows are left out: it may ask to say something backwards.
    """
    public = _public(task).lower()
    return {
        encoded: (secret, way)
        for secret in secrets
        for way, text in spellings(secret).items()
        if len(text) >= _MIN_SECRET_CHARS
        if (encoded := text.lower().encode(errors="surrogatepass")) not in public
    }


def _with_marked_numbers(audited: AuditedEnv, task: Task) -> tuple[Task, list[str]] | None:
    """The task with its hidden numbers replaced by unique ones, and the new numbers as texts.

    ``None`` if it hides no numbers, or if the environment cannot pose it with other numbers.
    """
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
    marked = dataclasses.replace(task, hidden=hidden)
    try:
        audited.play(marked, [audited.kind.noop_action])
    except Exception:  # its hidden numbers are settings, not only answers
        return None
    return marked, marks


def _leak(task: Task, secret: str, place: str) -> AuditFailure:
    return AuditFailure(f"task {task.id}: the hidden value {secret[:40]!r} can be read in {place}")


def _visible(audited: AuditedEnv, task: Task, secrets: Sequence[str]) -> Iterator[tuple[str, bytes, bool]]:
    """All that an agent sees without solving the task: place, content, and True if it follows an action."""
    for number, actions in enumerate(_probes(audited, task, secrets)):
        episode = audited.attempt(task, actions, max_turns=max(audited.max_turns, len(actions)))
        for turn, text in enumerate(() if episode is None else episode.observations):
            yield f"observation {turn} of episode {number}", text.encode(errors="surrogatepass"), turn > 0
    with contextlib.closing(audited.make([task])) as env:
        env.reset(seed=0, options={"task": task.id})
        for path, data in env.sandbox.export(["**"], 2**26).items():
            yield f"the workspace's {path}", data, False
            for part in decompressed(data):
                kind = "git history" if ".git" in path.split("/") else "compressed data"
                yield f"the {kind} in the workspace's {path}", part, False


def _probes(audited: AuditedEnv, task: Task, secrets: Sequence[str]) -> Iterator[Sequence[str]]:
    """Episodes without an answer: nothing, noise, and every tool."""
    yield [audited.kind.noop_action]
    yield audited.noise(task, 2)
    calls = [*_calls(audited, task, secrets), *_unless_told(audited.wrong_actions(task), secrets)]
    if calls:
        yield calls


def _calls(audited: AuditedEnv, task: Task, secrets: Sequence[str]) -> list[str]:
    """A call of each tool with the smallest arguments, and the calls of oracles that do not say a secret."""
    tools = audited.tools
    actions = [*[*audited.kind.oracle(task)][:-1], *audited.wrong_actions(task)] if tools else []
    calls = ((action, parse_calls(action, tools)[0]) for action in actions)
    given = [action for action, call in calls if isinstance(call, ToolCall) and not call.tool.ends]
    smallest = [minimal_call(tool) for tool in tools if not tool.ends]
    return [*smallest, *_unless_told(given, secrets)]


def _unless_told(actions: Sequence[str], secrets: Sequence[str]) -> list[str]:
    """The actions that say no secret themselves."""
    told = [text for secret in secrets for text in stored(secret)]
    encoded = ((action, action.encode(errors="surrogatepass")) for action in actions)
    return [action for action, data in encoded if not any(text in data for text in told)]


def _common_words(audited: AuditedEnv, secrets: Sequence[str]) -> set[str]:
    """The secrets that also occur in an unused sandbox, such as words of the interpreter. They are no leak.

    Raises:
        AuditFailure: a long secret is in a file of the unused sandbox.
    """
    if not (audited.backend.isolated and secrets):
        return set()
    secret_of = {text: secret for secret in secrets for text in stored(secret)}
    with audited.backend.create() as sandbox:
        found = SandboxScanner(sandbox).find([*secret_of])
    for text, place in found.items():
        if place.startswith("the file ") and len(text) >= _MIN_SENTENCE_BYTES:
            raise AuditFailure(
                f"the hidden value {secret_of[text][:40]!r} can be read in every sandbox, in {place}"
            )
    return {secret_of[text] for text in found}


def _reachable(
    audited: AuditedEnv, task: Task, calls: Sequence[str], texts: Sequence[bytes]
) -> Mapping[bytes, str]:
    """The texts that a program in a task's sandbox can find in processes and files: text -> place."""
    if not texts:
        return {}
    found = _scan_after(audited, task, calls, texts)
    if found is None:  # the calls ended the episode, so scan before them
        found = _scan_after(audited, task, [], texts)
    return found or {}


def _scan_after(
    audited: AuditedEnv, task: Task, actions: Sequence[str], texts: Sequence[bytes]
) -> Mapping[bytes, str] | None:
    """The result of `SandboxScanner.find` after these actions; ``None`` if they end the episode."""
    backend = InstrumentedBackend(audited.backend, scans=True)

    def scan() -> Mapping[bytes, str] | None:
        with contextlib.closing(
            audited.kind(tasks=[task], sandbox=backend, max_turns=len(actions) + 1)
        ) as env:
            env.reset(seed=0, options={"task": task.id})
            if any(any(env.step(action)[2:4]) for action in actions):
                return None
            if not env.backend.isolated:  # the scan would search this whole machine
                return {}
            return (backend.scanner or SandboxScanner(env.sandbox)).find(texts)

    return run_with_timeout(scan, f"task {task.id}", backend.close)
