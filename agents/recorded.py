"""Agent that replays a model's recorded outputs, so that they are graded here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast, final

from envkit.agent import Session
from envkit.env.taskfile import MAX_BYTES, write_once
from envkit.errors import ContractError, TaskFileError, UsageError
from envkit.runtime.files import read_regular_file
from envkit.types import EpisodeKey, Turn, Usage

_FIELDS = ("task", "actions", "usage")
_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens")


@dataclass(slots=True, eq=False)
class _Playback:
    key: EpisodeKey
    turns: int = 0
    #: Tokens of the conversation so far, if they are estimated.
    tokens: int = 0


@final
class RecordedAgent:
    """Replays the recorded actions of a task turn by turn and ignores observations.

    Args:
        name: name in reports.
        actions: task id -> actions, in order. Each task has one record, so it can be sampled once.
        idle: action for turns after the record's end, such as ``Env.noop_action``.
        usage: task id -> usage of the whole record; counted at the first turn.
        count_tokens: estimates the usage of records without one: the conversation so far is the prompt of
            each turn.
    """

    def __init__(
        self,
        name: str,
        actions: Mapping[str, Sequence[str]],
        *,
        idle: str,
        usage: Mapping[str, Usage] | None = None,
        count_tokens: Callable[[str], int] | None = None,
    ) -> None:
        self.name, self._count_tokens = name, count_tokens
        self._actions, self._idle, self._usage = actions, idle, usage or {}
        self._waiting: list[_Playback] = []

    def start(self, key: EpisodeKey, system: str) -> _Playback:
        """Begin an episode.

        Raises:
            UsageError: the task has no record, or a second sample of it is wanted.
        """
        if key.task not in self._actions:
            raise UsageError(
                f"agent {self.name} has records of {len(self._actions)} tasks, but none of {key.task}; "
                "play only the tasks that were recorded"
            )
        if key.row > 0:
            raise UsageError(
                f"agent {self.name} has one record of task {key.task} and was asked for sample "
                f"{key.row + 1}; play it with 1 sample per task"
            )
        return _Playback(key, tokens=self._tokens(key, system))

    def _tokens(self, key: EpisodeKey, text: str) -> int:
        """Tokens of a text, 0 if the record has a usage or nothing is estimated."""
        return 0 if self._count_tokens is None or key.task in self._usage else self._count_tokens(text)

    def submit(self, session: Session, observation: str) -> None:
        if not isinstance(session, _Playback):
            raise ContractError(f"agent {self.name} was given a session of another agent")
        session.tokens += self._tokens(session.key, observation)
        self._waiting.append(session)

    def collect(self) -> Sequence[tuple[Session, Turn]]:
        waiting, self._waiting = self._waiting, []
        turns: list[tuple[Session, Turn]] = []
        for session in waiting:
            actions, index = self._actions[session.key.task], session.turns
            usage = self._usage.get(session.key.task, Usage()) if index == 0 else Usage()
            action = actions[index] if index < len(actions) else self._idle
            # The idle action was added to the record, here or by its reader.
            if action != self._idle and (written := self._tokens(session.key, action)):
                usage = Usage(session.tokens, written)
                session.tokens += written
            turns.append((session, Turn(action, usage=usage)))
            session.turns += 1
        return turns


def read_recorded(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a JSONL file with one ``{"task": ID, "actions": [TEXT, ...]}`` per line; returns actions by task.

    Raises:
        TaskFileError: names the file, and the line and field of the fault.
    """
    return {task: actions for task, actions, _ in _read(path)}


def read_usage(path: Path) -> dict[str, Usage]:
    """Read the usage of the records that have one, by task; raises as `read_recorded` does.

    The fields of ``usage`` are those of `envkit.types.Usage`, each optional.
    """
    return {task: usage for task, _, usage in _read(path) if usage is not None}


def write_recorded(
    path: Path, records: Mapping[str, Sequence[str]], usage: Mapping[str, Usage] | None = None
) -> None:
    """Write records for `read_recorded` and `read_usage`, atomically.

    Raises:
        TaskFileError: there are no records, the file exists with other content, or it cannot be written.
    """
    if not records:
        raise TaskFileError(f"{path}: there are no records to write; nothing was written")
    lines: list[str] = []
    for task, actions in records.items():
        row: dict[str, object] = {"task": task, "actions": list(actions)}
        if usage and task in usage:
            row["usage"] = asdict(usage[task])
        lines.append(json.dumps(row, sort_keys=True) + "\n")
    write_once(path, "".join(lines))


def _read(path: Path) -> list[tuple[str, tuple[str, ...], Usage | None]]:
    try:
        # Not `str.splitlines`: JSON texts may hold its other line separators, such as U+2028.
        lines = read_regular_file(path, MAX_BYTES).decode().split("\n")
    except OSError as error:
        raise TaskFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise TaskFileError(f"{path} cannot be read: {error}") from error
    rows: dict[str, tuple[str, tuple[str, ...], Usage | None]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = _row(line, f"{path}, line {number}")
            if row[0] in rows:
                raise TaskFileError(
                    f"{path}, line {number}, field 'task': {row[0]!r} is on an earlier line too; "
                    "expected one record per task"
                )
            rows[row[0]] = row
    if not rows:
        raise TaskFileError(f"{path} is empty; expected one record per line")
    return list(rows.values())


def _row(line: str, where: str) -> tuple[str, tuple[str, ...], Usage | None]:
    try:
        data: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f"{where}: not JSON ({error}); expected one object per line") from error
    if not isinstance(data, dict):
        raise TaskFileError(f"{where}: found {type(data).__name__}, expected an object")
    fields = cast("dict[str, object]", data)
    if unknown := sorted(fields.keys() - {*_FIELDS}):
        raise TaskFileError(f"{where}, field {unknown[0]!r}: unknown; expected {', '.join(_FIELDS)}")
    task, actions = fields.get("task"), fields.get("actions")
    if not isinstance(task, str):
        raise TaskFileError(f"{where}, field 'task': found {_kind(fields, 'task')}, expected a text")
    if not isinstance(actions, list) or not actions:
        raise TaskFileError(
            f"{where}, field 'actions': found {_kind(fields, 'actions')}, expected a list of texts"
        )
    for index, action in enumerate(cast("list[object]", actions)):
        if not isinstance(action, str):
            raise TaskFileError(
                f"{where}, field 'actions[{index}]': found {type(action).__name__}, expected a text"
            )
    usage = _usage(fields["usage"], where) if "usage" in fields else None
    return task, tuple(cast("list[str]", actions)), usage


def _usage(data: object, where: str) -> Usage:
    if not isinstance(data, dict):
        raise TaskFileError(f"{where}, field 'usage': found {type(data).__name__}, expected an object")
    counts: dict[str, int] = {}
    seconds = 0.0
    for name, value in cast("dict[str, object]", data).items():
        place = f"{where}, field 'usage.{name}'"
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if name not in (*_COUNTS, "seconds"):
            raise TaskFileError(f"{place}: unknown; expected {', '.join((*_COUNTS, 'seconds'))}")
        if not number or cast("float", value) < 0:
            raise TaskFileError(f"{place}: found {value!r}, expected a number of at least 0")
        if name == "seconds":
            seconds = float(cast("float", value))
        elif isinstance(value, int):
            counts[name] = value
        else:
            raise TaskFileError(f"{place}: found {value!r}, expected a whole number of tokens")
    usage = Usage(**counts, seconds=seconds)
    if usage.cached_tokens > usage.prompt_tokens:
        raise TaskFileError(
            f"{where}, field 'usage.cached_tokens': found {usage.cached_tokens}, expected at most "
            f"prompt_tokens, which is {usage.prompt_tokens}"
        )
    return usage


def _kind(fields: Mapping[str, object], name: str) -> str:
    if name not in fields:
        return "nothing"
    return "an empty list" if fields[name] == [] else type(fields[name]).__name__
