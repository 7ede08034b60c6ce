"""Cells of the grid: one arm with one seed, and what was measured of it, in files that can be committed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final, TypeVar, cast

from envkit.benchmark.controls import Control
from envkit.benchmark.recipes import Recipe, difference_of, recipe_of
from envkit.benchmark.report_data import Conditions, Machine, Row, TaskResult
from envkit.benchmark.stats import Interval
from envkit.errors import StoreError, UsageError
from envkit.files import read_json_object
from envkit.plain import decode, encode
from envkit.store import write_atomic
from envkit.studies.founding.arms import ARMS, Arm

#: What can be measured of a cell: episodes of held-out tasks; many of fewer tasks; how far it has moved from
#: its base; and, of the base alone, what it costs to decode with many adapters.
SOLVE: Final = "solve"
MANY: Final = "many"
DISTANCE: Final = "distance"
MULTIPLEX: Final = "multiplex"
#: Those that are episodes.
PLAYED: Final = (SOLVE, MANY)
_TRAINING: Final = "training"

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Made:
    """How a cell's adapter was made.

    Args:
        adapter: its folder, relative to the cell's.
        control: what it changes, and what that took.
        commit: version of envkit.
    """

    adapter: str
    control: Control
    commit: str


@dataclass(frozen=True, slots=True)
class Measured:
    """Episodes of a cell on held-out tasks.

    Args:
        row: the results, by task.
        conditions: under which they were measured.
        machine: hardware.
        commit: version of envkit.
    """

    row: Row
    conditions: Conditions
    machine: Machine
    commit: str


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a cell's adapter has moved from its base.

    Args:
        sources: files that the passages of other text stand in.
        rises: how much worse each passage is predicted than by the base, in nats per token.
        kl: divergence from the base, in nats per sampled token, on the cell's own episodes.
        commit: version of envkit.
    """

    sources: tuple[str, ...]
    rises: tuple[float, ...]
    kl: Interval
    commit: str

    def __post_init__(self) -> None:
        if not self.rises or len(self.sources) != len(self.rises):
            raise ValueError(
                f"{len(self.rises)} rises and {len(self.sources)} sources; expected one of each passage"
            )

    @property
    def rise(self) -> float:
        """Mean rise, in nats per token."""
        return sum(self.rises) / len(self.rises)


@dataclass(frozen=True, slots=True)
class Multiplexed:
    """Decoding with many random adapters on one base.

    Args:
        rank: of each adapter.
        rows: that were decoded.
        speeds: tokens per second of each round, by way; see `envkit.studies.multiplexing.ManyAdapters`.
        difference: largest difference of log-probabilities between a row among many adapters and the same row
            alone, in float32.
        machine: hardware.
        commit: version of envkit.
    """

    rank: int
    rows: int
    speeds: Mapping[str, tuple[float, ...]]
    difference: float
    machine: Machine
    commit: str


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
        """How its adapter was made; ``None`` if it was not, or if it has none."""
        return self._read(Made, _TRAINING)

    def write_made(self, value: Made) -> None:
        """Keep how its adapter was made."""
        self._write(_TRAINING, value)

    def measured(self, part: str) -> Measured | None:
        """Episodes of ``"solve"`` or ``"many"``; ``None`` if they were not played."""
        return self._read(Measured, part)

    def write_measured(self, part: str, value: Measured) -> None:
        """Keep the episodes of ``"solve"`` or ``"many"``."""
        self._write(part, value)

    @property
    def distance(self) -> Distance | None:
        """How far its adapter has moved; ``None`` if that was not measured."""
        return self._read(Distance, DISTANCE)

    def write_distance(self, value: Distance) -> None:
        """Keep how far its adapter has moved."""
        self._write(DISTANCE, value)

    @property
    def multiplexed(self) -> Multiplexed | None:
        """What decoding with many adapters costs; ``None`` if that was not measured."""
        return self._read(Multiplexed, MULTIPLEX)

    def write_multiplexed(self, value: Multiplexed) -> None:
        """Keep what decoding with many adapters costs."""
        self._write(MULTIPLEX, value)

    def _file(self, part: str) -> Path:
        return self.path / f"{part}.json"

    def _read(self, kind: type[Part], part: str) -> Part | None:
        file = self._file(part)
        if not file.exists():
            return None
        try:
            return decode(kind, read_json_object(file), part)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{file} cannot be read ({error}); delete it, and it is measured again"
            ) from error

    def _write(self, part: str, value: object) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        plain = cast("dict[str, object]", encode(value))
        if isinstance(value, Measured):
            row = cast("dict[str, object]", plain["row"])
            row["items"] = [_without_defaults(result) for result in value.row.results]
        write_atomic(self._file(part), (json.dumps(plain, separators=(",", ":")) + "\n").encode())


#: Fields of a task's result that no page needs.
_UNUSED: Final = frozenset({"held_out", "rewards"})


def _without_defaults(result: TaskResult) -> Mapping[str, object]:
    """A task's result in few characters: what is as by default, and what no page needs, is left out."""
    short = replace(result, seconds=round(result.seconds, 3))
    return {
        entry.name: value
        for entry in fields(TaskResult)
        if (value := getattr(short, entry.name)) != entry.default and entry.name not in _UNUSED
    }


@dataclass(frozen=True, slots=True)
class Grid:
    """All cells of a folder.

    Args:
        root: the folder.
        seeds: seeds of every arm.
    """

    root: Path
    seeds: int
    _recipes: dict[tuple[str, str], Recipe] = field(default_factory=dict[tuple[str, str], Recipe], init=False)

    def cells(self, arm: str) -> list[CellFolder]:
        """The cells of an arm, measured or not."""
        kind = ARMS[arm]
        return [CellFolder.of(self.root, kind, seed) for seed in range(self.seeds if kind.has_seeds else 1)]

    def rows(self, arm: str, part: str = SOLVE) -> list[Row]:
        """Rows of an arm's seeds, as far as they are measured."""
        return [found.row for cell in self.cells(arm) if (found := cell.measured(part)) is not None]

    def recipe(self, arm: str, part: str = SOLVE) -> Recipe:
        """An arm's seeds taken together.

        Raises:
            UsageError: none is measured.
        """
        if (arm, part) not in self._recipes:  # intervals take a moment
            if not (rows := self.rows(arm, part)):
                raise UsageError(f"arm {arm} is not measured yet; run the study to measure it")
            self._recipes[arm, part] = recipe_of(arm, rows)
        return self._recipes[arm, part]

    def difference(self, arm: str, against: str, part: str = SOLVE) -> Interval:
        """Solve rate of an arm minus that of another, paired by task, for other sources and seeds.

        Raises:
            UsageError: one is not measured, or they have no task in common.
        """
        found = difference_of(self.recipe(arm, part), self.recipe(against, part))
        if found is None:
            raise UsageError(f"{arm} and {against} have no graded task in common")
        return found

    def require_same_conditions(self, arms: Sequence[str], part: str) -> None:
        """Raise if cells were measured on other tasks, with other code or with other limits.

        Raises:
            UsageError: they were; the message names a cell to measure again.
        """
        found = [
            (cell, measured.conditions)
            for arm in arms
            for cell in self.cells(arm)
            if (measured := cell.measured(part)) is not None
        ]
        digests = [conditions.digest for _, conditions in found]
        for cell, conditions in found:
            if digests.count(conditions.digest) < max(map(digests.count, digests)):
                file = cell.path / f"{part}.json"
                raise UsageError(
                    f"{file} was measured with other tasks, code or limits than most cells; delete it, and "
                    "run the study again to measure it anew"
                )
