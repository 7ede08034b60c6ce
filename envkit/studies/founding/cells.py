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
from envkit.studies.founding.arms import ARMS, BASE, Arm

#: What can be measured of a cell: episodes of held-out tasks; many of fewer tasks; how far it has moved from
#: its base; and, of the base alone, what scripts solve, and what it costs to decode with many adapters.
SOLVE: Final = "solve"
MANY: Final = "many"
DISTANCE: Final = "distance"
CHANCE: Final = "chance"
MULTIPLEX: Final = "multiplex"
#: Those that are episodes of a cell.
PLAYED: Final = (SOLVE, MANY)
_TRAINING: Final = "training"

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Made:
    """Record of making a cell's adapter.

    Args:
        adapter: its folder, relative to the cell's.
        digest: of its weights.
        control: what it changes, and what that took.
        steps: gradient steps of RL that were taken; 0 for other ways.
        planned: steps that its settings ask for.
        commit: version of envkit.
    """

    adapter: str
    digest: str
    control: Control
    steps: int
    planned: int
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
class Chance:
    """Episodes of the environment's baselines, scripts without a model, on the tasks of ``"solve"``.

    Args:
        rows: one for each baseline; none if the environment has none.
        conditions: under which they were measured; ``None`` without rows.
        commit: version of envkit.
    """

    rows: tuple[Row, ...]
    conditions: Conditions | None
    commit: str


@dataclass(frozen=True, slots=True)
class Distance:
    """Distance of a cell's adapter from its base.

    Args:
        digest: of the adapter's weights.
        sources: files that the passages of other text stand in.
        rises: how much worse each passage is predicted than by the base, in nats per token.
        kl: divergence from the base, in nats per sampled token, on the cell's own episodes.
        commit: version of envkit.
    """

    digest: str
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
        """Read how its adapter was made; ``None`` if it was not, or if it has none."""
        return self._read(Made, _TRAINING)

    def write_made(self, value: Made) -> None:
        """Keep how its adapter was made."""
        self._write(_TRAINING, value)

    def measured(self, part: str) -> Measured | None:
        """Episodes of ``"solve"`` or ``"many"``; ``None`` if they were not played.

        Raises:
            UsageError: another adapter played them.
        """
        found = self._read(Measured, part)
        if found is not None:
            self._require_own(found.row.origin.adapter, part)
        return found

    def write_measured(self, part: str, value: Measured) -> None:
        """Keep the episodes of ``"solve"`` or ``"many"``."""
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

    @property
    def chance(self) -> Chance | None:
        """Read what scripts solve; ``None`` if that was not measured."""
        return self._read(Chance, CHANCE)

    def write_chance(self, value: Chance) -> None:
        """Keep what scripts solve."""
        self._write(CHANCE, value)

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
        made = self.made
        if made is not None and made.digest != digest:
            raise UsageError(
                f"{self._file(part)} was measured of another adapter than {self.name} has; {self.again(part)}"
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
        elif isinstance(value, Chance):
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

    @property
    def chance(self) -> dict[str, Row]:
        """Rows of the environment's baselines by name."""
        found = CellFolder.of(self.root, ARMS[BASE], 0).chance
        return {} if found is None else {row.name: row for row in found.rows}

    def difference_from(self, row: Row, arm: str) -> Interval:
        """Solve rate of an arm minus that of a row, paired by task.

        Raises:
            UsageError: the arm is not measured, or they have no task in common.
        """
        found = difference_of(self.recipe(arm), recipe_of(row.name, [row]))
        if found is None:
            raise UsageError(f"{arm} and {row.name} have no graded task in common")
        return found

    def require_same_conditions(self, arms: Sequence[str], part: str) -> None:
        """Raise if cells were measured on other tasks, with other code, weights or limits.

        Raises:
            UsageError: they were; the message names two of them.
        """
        found = [
            (cell, measured)
            for arm in arms
            for cell in self.cells(arm)
            if (measured := cell.measured(part)) is not None
        ]
        for cell, measured in found[1:]:
            first, expected = found[0]
            if differing := _differing(measured, expected):
                raise UsageError(
                    f"{cell.name} and {first.name} were measured with different {differing[0]}; "
                    f"{cell.again(part)}, or likewise for {first.name}"
                )
        base = CellFolder.of(self.root, ARMS[BASE], 0)
        scripts = base.chance if part == SOLVE else None
        if found and scripts is not None and scripts.conditions not in (None, found[0][1].conditions):
            raise UsageError(
                f"scripts and {found[0][0].name} were measured under different conditions; "
                f"{base.again(CHANCE)}"
            )


def _differing(one: Measured, other: Measured) -> list[str]:
    """Names of what two measurements should have in common and have not."""
    origin, theirs = one.row.origin, other.row.origin
    pairs = {
        entry.name: (getattr(one.conditions, entry.name), getattr(other.conditions, entry.name))
        for entry in fields(Conditions)
    } | {
        "weights": (origin.digest, theirs.digest),
        "temperature": (origin.temperature, theirs.temperature),
        "max_completion_length": (origin.max_completion_length, theirs.max_completion_length),
        "stop_strings": (origin.stop_strings, theirs.stop_strings),
        "max_context_length": (origin.max_context_length, theirs.max_context_length),
    }
    return [name for name, (mine, yours) in pairs.items() if mine != yours]
