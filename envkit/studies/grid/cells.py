"""Cells of the grid: one arm with one seed, and what was measured of it, in files that can be committed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, TypeVar, cast

from envkit.errors import StoreError, UsageError
from envkit.measure.report.data import Row, TaskResult
from envkit.runtime.files import read_json_object
from envkit.runtime.plain import decode, encode
from envkit.runtime.store import write_atomic
from envkit.studies.grid.arms import Arm
from envkit.studies.grid.measurements import (
    DISTANCE,
    MULTIPLEX,
    Distance,
    Made,
    Measured,
    Multiplexed,
    Others,
    RoutedTasks,
    SystemPrompt,
    others_part,
    searched_message,
)

Part = TypeVar("Part")

_TRAINING: Final = "training"
_PROMPT: Final = "prompt"


@dataclass(frozen=True, slots=True)
class CellFolder:
    """The folder of one arm with one seed. What is measured lies in it; its runs lie in ``work``.

    Args:
        path: the folder.
        arm: the arm.
        seed: of its training; 0 for an arm without seeds.
    """

    path: Path
    arm: Arm
    seed: int

    @classmethod
    def of(cls, root: Path, arm: Arm, seed: int) -> CellFolder:
        """The folder of a cell below a grid's folder."""
        return cls(root / (f"{arm.name}-seed-{seed}" if arm.has_seeds else arm.name), arm, seed)

    @property
    def name(self) -> str:
        """Name of its row; rows of one arm are equal up to the ending."""
        return f"{self.arm.name}, seed {self.seed}" if self.arm.has_seeds else self.arm.name

    @property
    def work(self) -> Path:
        """Folder of its run folders, which the pages do not need."""
        return self.path / "work"

    def has(self, part: str) -> bool:
        """True if a part is measured."""
        return self._file(part).exists()

    @property
    def made(self) -> Made | None:
        """Read how its adapter was made; ``None`` if it was not, or if it has none."""
        return self._read(Made, _TRAINING)

    def write_made(self, value: Made) -> None:
        """Keep how its adapter was made."""
        self._write(_TRAINING, value)

    @property
    def prompt(self) -> SystemPrompt | None:
        """Read its system message; ``None`` if it has none of its own, or that was not searched for yet."""
        return self._read(SystemPrompt, _PROMPT)

    def write_prompt(self, value: SystemPrompt) -> None:
        """Keep its system message."""
        self._write(_PROMPT, value)

    def measured(self, part: str) -> Measured | None:
        """Episodes of a part of `PLAYED`; ``None`` if they were not played.

        Raises:
            UsageError: another adapter played them.
        """
        found = self._read(Measured, part)
        if found is not None:
            origin = found.row.origin
            self._require_own(origin.system if self.prompt else origin.adapter, part)
        return found

    def write_measured(self, part: str, value: Measured) -> None:
        """Keep the episodes of a part of `PLAYED`."""
        self._write(part, value)

    def chosen(self, part: str) -> RoutedTasks | None:
        """Read which arm answers each prompt of a part; ``None`` if that was not asked."""
        return self._read(RoutedTasks, part)

    def write_chosen(self, part: str, value: RoutedTasks) -> None:
        """Keep which arm answers each prompt of a part."""
        self._write(part, value)

    @property
    def distance(self) -> Distance | None:
        """Read how far its adapter has moved; ``None`` if that was not measured.

        Raises:
            UsageError: it was measured of another adapter.
        """
        found = self._read(Distance, DISTANCE)
        if found is not None:
            self._require_own(found.digest, DISTANCE)
        return found

    def write_distance(self, value: Distance) -> None:
        """Keep how far its adapter has moved."""
        self._write(DISTANCE, value)

    def others(self, part: str) -> Others | None:
        """Read what others answer to the tasks of a part; ``None`` if that was not measured."""
        return self._read(Others, others_part(part))

    def write_others(self, part: str, value: Others) -> None:
        """Keep what others answer to the tasks of a part."""
        self._write(others_part(part), value)

    @property
    def multiplexed(self) -> Multiplexed | None:
        """Read what decoding with many adapters costs; ``None`` if that was not measured."""
        return self._read(Multiplexed, MULTIPLEX)

    def write_multiplexed(self, value: Multiplexed) -> None:
        """Keep what decoding with many adapters costs."""
        self._write(MULTIPLEX, value)

    def again(self, part: str) -> str:
        """Say how to measure a part again."""
        return f"to measure it again, delete {self._file(part)} and {self.work / part}"

    def _require_own(self, digest: str, part: str) -> None:
        """Raise if something was measured of another adapter than the cell has."""
        made, prompt = self.made, self.prompt
        own = None if made is None else made.digest
        if prompt is not None:
            own = searched_message(prompt.system, self.seed)
        if own is not None and own != digest:
            raise UsageError(
                f"{self._file(part)} was measured of another adapter or message than {self.name} has; "
                f"{self.again(part)}"
            )

    def _file(self, part: str) -> Path:
        return self.path / f"{part}.json"

    def _read(self, kind: type[Part], part: str) -> Part | None:
        file = self._file(part)
        if not file.exists():
            return None
        try:
            return decode(kind, read_json_object(file), part)
        except (OSError, ValueError) as error:
            raise StoreError(f"{file} cannot be read ({error}); {self.again(part)}") from error

    def _write(self, part: str, value: object) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        plain = cast("dict[str, object]", encode(value))
        if isinstance(value, Measured):
            plain["row"] = _short(value.row)
        elif isinstance(value, Others):
            plain["rows"] = [_short(row) for row in value.rows]
        write_atomic(self._file(part), (json.dumps(plain, separators=(",", ":")) + "\n").encode())


def _short(row: Row) -> dict[str, object]:
    """A row in few characters."""
    plain = cast("dict[str, object]", encode(row))
    return {**plain, "items": [_without_defaults(result) for result in row.results]}


#: Fields of a task's result that no page needs.
_UNUSED: Final = frozenset({"held_out", "held_out_failed", "rewards"})


def _without_defaults(result: TaskResult) -> Mapping[str, object]:
    """A task's result in few characters: what is as by default, and what no page needs, is left out."""
    short = replace(result, seconds=round(result.seconds, 3))
    return {
        entry.name: value
        for entry in fields(TaskResult)
        if (value := getattr(short, entry.name)) != entry.default and entry.name not in _UNUSED
    }
