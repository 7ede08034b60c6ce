"""Index of the episodes in a run folder, for the viewer's list."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast, final

from envkit.errors import StoreError
from envkit.measure.evaluation import EVALUATION_STEP
from envkit.runtime.store import SCHEMA, RunFolder, trajectory_from_json
from envkit.types import Trajectory

_Record = Mapping[str, Any]
#: Longest line that is read. Episodes have a few kB per turn.
_MAX_LINE_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class EpisodeEntry:
    """One episode as the viewer lists it.

    Args:
        journal: its file, relative to the run and without ``.jsonl``.
        line: its line in that file, from 1. Journal and line identify the episode: journals only grow.
        agent_or_phase: the agent's name in the report, or the phase of training; the journal's name if it has
            neither.
        env, agent, task, seed, group, row: see `Trajectory` and `EpisodeKey`.
        step: training step; ``None`` in an evaluation.
        outcome, verdict: result of the episode; the verdict is empty in a void.
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
    """The part of a journal that was read, up to its last complete line."""

    inode: int
    end: int = 0
    entries: list[EpisodeEntry] = field(default_factory=list[EpisodeEntry])
    offsets: list[int] = field(default_factory=list[int])


@final
class EpisodeIndex:
    """Index over all journals of a run that hold episodes. The run may still be written to. Thread-safe.

    A run of several environments or seeds has a subfolder with journals for each of them. Journals are read
    once, line by line. Only the `EpisodeEntry` and the file offset of an episode stay in memory.

    Args:
        run: folder of the run.

    Raises:
        StoreError: a journal cannot be read or is corrupt; the message names file and line.
    """

    def __init__(self, run: RunFolder) -> None:
        self._folder = run.path
        self._read: dict[str, _Read] = {}
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> list[EpisodeEntry]:
        """Read the lines that were added since the last call; returns all entries, by journal.

        A last line without a newline is skipped until it is complete: it is being written, or its writer was
        killed.

        Raises:
            StoreError: a journal cannot be read or is corrupt; the message names file and line.
        """
        with self._lock:
            for name in self._journals():
                path = self._path(name)
                try:
                    self._read_new_lines(name, path)
                except OSError as error:
                    raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
            return [entry for name in sorted(self._read, key=_order) for entry in self._read[name].entries]

    def _journals(self) -> list[str]:
        manifests = (*self._folder.glob("*/manifest.json"), *self._folder.glob("*/*/manifest.json"))
        # Checkpoints have manifests too, but no journals, and may be deleted meanwhile.
        parts = (manifest.parent for manifest in manifests if manifest.parent.parent.name != "checkpoints")
        folders = (self._folder, *parts)
        # Reading a FIFO or a device might never end.
        journals = (path for folder in folders for path in folder.glob("*.jsonl") if path.is_file())
        return [str(path.relative_to(self._folder).with_suffix("")) for path in journals]

    def _path(self, journal: str) -> Path:
        return self._folder / f"{journal}.jsonl"

    def _read_new_lines(self, name: str, path: Path) -> None:
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
                    return  # not a journal of episodes, but of tasks, metrics or phases
                read.entries.append(_decoded(record, name, path, number)[0])
                read.offsets.append(read.end)
                read.end += len(line)
            if len(line) == _MAX_LINE_BYTES:
                raise StoreError(
                    f"{path}:{len(read.entries) + 1}: the line is longer than {_MAX_LINE_BYTES >> 20} MiB; "
                    "this is not a journal of episodes: move it out of the run folder"
                )
        self._read[name] = read

    def load(self, journal: str, line: int) -> tuple[EpisodeEntry, Trajectory, _Record] | None:
        """Load an episode with its record; ``None`` if the index has none at that line.

        Raises:
            StoreError: it cannot be read, or has changed since it was indexed.
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
                data = file.readline()
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
        record = _parsed(data, path, line)
        current, trajectory = _decoded(record, journal, path, line)
        if current != entry:
            raise StoreError(f"{path}:{line}: the file has changed; load the page again")
        return entry, trajectory, record


def _order(journal: str) -> tuple[str, str]:
    """Sort key of a journal: its folder, then its name, ignoring case."""
    folder, _, name = journal.rpartition("/")
    return folder, name.casefold()


def _parsed(line: bytes, path: Path, number: int) -> _Record:
    try:
        record: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}:{number}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise StoreError(f"{path}:{number}: expected a JSON object, found {str(record)[:40]}")
    return cast("dict[str, Any]", record)


def _decoded(record: _Record, journal: str, path: Path, number: int) -> tuple[EpisodeEntry, Trajectory]:
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
        step=None if key.step == EVALUATION_STEP else key.step + 1,  # as metrics and checkpoints count
        group=key.group,
        row=key.row,
        outcome=trajectory.outcome.value,
        verdict=str(trajectory.info.get("verdict", "")),
        reward=trajectory.reward,
        turns=len(trajectory.steps),
        tokens=sum(usage.completion_tokens for usage in usages),
        seconds=sum(usage.seconds for usage in usages),
    )
