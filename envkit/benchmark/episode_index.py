"""Index of the episodes in a run folder, for the viewer's list."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast, final

from envkit.benchmark.evaluation import EVALUATION_STEP
from envkit.errors import StoreError
from envkit.store import SCHEMA, RunFolder, trajectory_from_json
from envkit.types import Trajectory

_Record = Mapping[str, Any]
#: Longest line that is read. An episode takes some kB per turn.
_MAX_LINE_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class EpisodeEntry:
    """One episode as the viewer lists it.

    Args:
        journal: the file it stands in, relative to the run and without ``.jsonl``.
        line: the line in that file, from 1. With ``journal`` it names the episode for good: lines are only
            ever added.
        agent_or_phase: the agent's name in the report, or the phase of training; the journal's name if it has
            neither.
        env, agent, task, seed, group, row: see `Trajectory` and `EpisodeKey`.
        step: the training step; ``None`` in an evaluation.
        outcome, verdict: how it ended; no verdict in a void.
        reward: sum over its turns.
        turns, tokens, seconds: turns taken, tokens written and seconds waited for the agent.
    """

    journal: str
    line: int
    agent_or_phase: str
    env: str
    agent: str
    task: str
    seed: int
    step: int | None
    group: int
    row: int
    outcome: str
    verdict: str
    reward: float
    turns: int
    tokens: int
    seconds: float


@dataclass(slots=True)
class _Read:
    """Part of a journal that was read, up to its last complete line."""

    inode: int
    end: int = 0
    entries: list[EpisodeEntry] = field(default_factory=list[EpisodeEntry])
    offsets: list[int] = field(default_factory=list[int])


@final
class EpisodeIndex:
    """An index over every journal of a run that holds episodes, of a run that is being written too.

    A run of several environments or seeds has a part for each, a folder inside, whose journals belong to it.
    Journals are read once, line by line. Of an episode only its `EpisodeEntry` and its offset are
    kept. Thread-safe.

    Args:
        run: the folder.

    Raises:
        StoreError: a journal cannot be read or is corrupt; names file and line.
    """

    def __init__(self, run: RunFolder) -> None:
        self._folder = run.path
        self._read: dict[str, _Read] = {}
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> list[EpisodeEntry]:
        """Read what was added since the last time; returns all entries, journal by journal.

        A last line without its newline is still being written, or is what a killed writer left; it is left
        for the next time.

        Raises:
            StoreError: a journal cannot be read or is corrupt; names file and line.
        """
        with self._lock:
            for name in self._journals():
                path = self._path(name)
                try:
                    self._read_on(name, path)
                except OSError as error:
                    raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
            return [entry for name in sorted(self._read, key=_order) for entry in self._read[name].entries]

    def _journals(self) -> list[str]:
        manifests = (*self._folder.glob("*/manifest.json"), *self._folder.glob("*/*/manifest.json"))
        # Checkpoints have one as well, and come and go.
        parts = (manifest.parent for manifest in manifests if manifest.parent.parent.name != "checkpoints")
        folders = (self._folder, *parts)
        # A FIFO or a device of that name would block the reader, or never end.
        found = (path for folder in folders for path in folder.glob("*.jsonl") if path.is_file())
        return [str(path.relative_to(self._folder).with_suffix("")) for path in found]

    def _path(self, journal: str) -> Path:
        return self._folder / f"{journal}.jsonl"

    def _read_on(self, name: str, path: Path) -> None:
        with path.open("rb") as file:
            status = path.stat()
            read = self._read.get(name)
            if read is None or read.inode != status.st_ino or status.st_size < read.end:
                read = _Read(status.st_ino)
            file.seek(read.end)
            while (line := file.readline(_MAX_LINE_BYTES)).endswith(b"\n"):
                number = len(read.entries) + 1
                record = _parsed(line, path, number)
                if number == 1 and not {"key", "steps", "outcome"} <= record.keys():
                    return  # tasks, metrics, phases: a file of something else
                read.entries.append(_understood(record, name, path, number)[0])
                read.offsets.append(read.end)
                read.end += len(line)
            if len(line) == _MAX_LINE_BYTES:
                raise StoreError(
                    f"{path}:{len(read.entries) + 1}: the line is longer than {_MAX_LINE_BYTES >> 20} MiB; "
                    "this is no journal of episodes: move it out of the run folder"
                )
        self._read[name] = read

    def load(self, journal: str, line: int) -> tuple[EpisodeEntry, Trajectory, _Record] | None:
        """One whole episode with its record, or ``None`` if the index knows none there.

        Raises:
            StoreError: it cannot be read, or is not what was indexed.
        """
        with self._lock:
            read = self._read.get(journal)
            if read is None or not 1 <= line <= len(read.entries):
                return None
            entry, offset = read.entries[line - 1], read.offsets[line - 1]
        path = self._path(journal)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                found = file.readline()
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
        record = _parsed(found, path, line)
        known, trajectory = _understood(record, journal, path, line)
        if known != entry:
            raise StoreError(f"{path}:{line}: the file has changed; load the page again")
        return entry, trajectory, record


def _order(journal: str) -> tuple[str, str]:
    """Part by part, and inside as people sort names."""
    part, _, name = journal.rpartition("/")
    return part, name.casefold()


def _parsed(line: bytes, path: Path, number: int) -> _Record:
    try:
        record: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}:{number}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise StoreError(f"{path}:{number}: expected a JSON object, found {str(record)[:40]}")
    return cast("dict[str, Any]", record)


def _understood(record: _Record, journal: str, path: Path, number: int) -> tuple[EpisodeEntry, Trajectory]:
    if (found := record.get("schema")) != SCHEMA:
        raise StoreError(f"{path}:{number}: schema is {found!r}; this version of envkit reads {SCHEMA}")
    try:
        trajectory = trajectory_from_json(record)
        entry = _entry(journal, number, record, trajectory)
        if not math.isfinite(entry.reward + entry.seconds):
            raise ValueError("reward or seconds are not finite")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}:{number}: not a trajectory ({error!r})") from error
    return entry, trajectory


def _entry(journal: str, line: int, record: _Record, trajectory: Trajectory) -> EpisodeEntry:
    key = trajectory.key
    name = journal.rpartition("/")[2]
    agent_or_phase = name.removeprefix("eval-") if name.startswith("eval-") else record.get("phase", name)
    usages = [step.turn.usage for step in trajectory.steps]
    return EpisodeEntry(
        journal=journal,
        line=line,
        agent_or_phase=str(agent_or_phase),
        env=str(trajectory.env),
        agent=str(trajectory.agent),
        task=str(key.task),
        seed=key.seed,
        step=None if key.step == EVALUATION_STEP else key.step,
        group=key.group,
        row=key.row,
        outcome=trajectory.outcome.value,
        verdict=str(trajectory.info.get("verdict", "")),
        reward=trajectory.reward,
        turns=len(trajectory.steps),
        tokens=sum(usage.completion_tokens for usage in usages),
        seconds=sum(usage.seconds for usage in usages),
    )
