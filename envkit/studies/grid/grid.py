"""The grid: all cells of a folder, and what they show together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from envkit.errors import UsageError
from envkit.measure.leaderboard.recipes import Recipe, difference_of, recipe_of
from envkit.measure.report.data import Conditions, Row
from envkit.measure.stats import LEVEL, Interval
from envkit.studies.grid.arms import ARMS, BASE, MERGED, RL_ARM, ROUTED, SPECIALISTS, WARM, Arm
from envkit.studies.grid.cells import CellFolder
from envkit.studies.grid.measurements import SOLVE, Measured, others_part
from envkit.training.config import TrainConfig, to_mapping

#: Arms whose cells of the same seed a cell is made of, by its kind.
_MADE_OF: Final[Mapping[str, tuple[Arm, ...]]] = MappingProxyType(
    {
        MERGED: tuple(SPECIALISTS.values()),
        WARM: (ARMS[RL_ARM],),
        ROUTED: (ARMS[BASE], *SPECIALISTS.values()),
    }
)


def require_difference(
    one: Recipe, other: Recipe, level: float = LEVEL, *, by_seed: bool = False
) -> Interval:
    """Solve rate of ``one`` minus that of ``other``; see `envkit.measure.leaderboard.recipes.difference_of`.

    Raises:
        UsageError: they have no task in common.
    """
    found = difference_of(one, other, level=level, by_seed=by_seed)
    if found is None:
        raise UsageError(f"{one.name} and {other.name} have no graded task in common")
    return found


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

    def has(self, cell: CellFolder, part: str) -> bool:
        """True if a part of a cell is measured; of a routed one, if the chosen arms have played it."""
        if cell.arm.kind == ROUTED:
            return self.measured(cell, part) is not None
        return cell.has(part)

    def measured(self, cell: CellFolder, part: str) -> Measured | None:
        """Episodes of a cell; ``None`` if they were not played.

        A routed cell has those of the arms that its router has chosen, or none if one of these has not played
        its tasks.

        Raises:
            UsageError: another adapter played them, or they are of an adapter that was merged of others than
                there are now.
        """
        self._require_made_of_these(cell)
        if cell.arm.kind != ROUTED:
            return cell.measured(part)
        chosen = cell.chosen(part)
        if chosen is None:
            return None
        players: dict[str, Measured] = {}
        for name in {BASE, *chosen.arms.values()}:
            found = CellFolder.of(self.root, ARMS[name], cell.seed if ARMS[name].has_seeds else 0).measured(
                part
            )
            if found is None:
                return None
            players[name] = found
        results = {name: {each.task: each for each in found.row.results} for name, found in players.items()}
        if any(task not in results[name] for task, name in chosen.arms.items()):
            return None
        adapters = sorted({found.row.origin.adapter for found in players.values()})
        row = Row(
            cell.name,
            cell.arm.meaning,
            tuple(results[name][task] for task, name in chosen.arms.items()),
            None,
            replace(players[BASE].row.origin, adapter=f"seed {cell.seed}: {', '.join(adapters)}"),
        )
        return replace(players[BASE], row=row, commit=chosen.commit)

    def made_of(self, cell: CellFolder) -> list[CellFolder]:
        """Cells that must be measured before a cell can be made."""
        return [
            CellFolder.of(self.root, arm, cell.seed if arm.has_seeds else 0)
            for arm in _MADE_OF.get(cell.arm.kind, ())
        ]

    def parts(self, cell: CellFolder) -> tuple[str, ...]:
        """Digests of the adapters that a cell's own is made of, as far as they are there."""
        made = [other.made for other in self.made_of(cell)]
        return tuple(each.digest for each in made if each is not None)

    def _require_made_of_these(self, cell: CellFolder) -> None:
        """Raise if an adapter was made of others than those of its seed."""
        made, now = cell.made, self.parts(cell)
        if made is not None and len(now) == len(self.made_of(cell)) and made.parts != now:
            raise UsageError(
                f"{cell.name} was made of other adapters than those that are there now; delete the folder "
                f"{cell.path} to make and measure it again"
            )

    def rows(self, arm: str, part: str = SOLVE) -> list[Row]:
        """Rows of an arm's seeds, as far as they are measured."""
        return [found.row for cell in self.cells(arm) if (found := self.measured(cell, part)) is not None]

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

    def difference(self, arm: str, against: str, part: str = SOLVE, *, level: float = LEVEL) -> Interval:
        """Solve rate of an arm minus that of another, paired by task, for other sources and seeds.

        Raises:
            UsageError: one is not measured, or they have no task in common.
        """
        return require_difference(self.recipe(arm, part), self.recipe(against, part), level)

    def pairs(self, arm: str, before: str, part: str = SOLVE) -> dict[int, tuple[Row, Row]]:
        """Rows of an arm and of what each of its seeds began with, by seed, where both are measured."""
        return {
            cell.seed: (after.row, earlier.row)
            for cell, began in zip(self.cells(arm), self.cells(before), strict=True)
            if (after := self.measured(cell, part)) and (earlier := self.measured(began, part))
        }

    def gain(self, arm: str, before: str, part: str = SOLVE) -> Interval:
        """Solve rate of an arm minus that of what each of its seeds began with, paired by task and seed.

        Raises:
            UsageError: no seed of both is measured, or they have no task in common.
        """
        if not (pairs := self.pairs(arm, before, part)):
            raise UsageError(f"arms {arm} and {before} are not measured yet; run the study to measure them")
        ours, theirs = (
            recipe_of(name, [pair[side] for pair in pairs.values()])
            for side, name in enumerate((arm, before))
        )
        return require_difference(ours, theirs, by_seed=True)

    def others(self, part: str = SOLVE) -> dict[str, Row]:
        """Rows of others on the tasks of a part, by name: the environment's baselines, recorded answers."""
        found = CellFolder.of(self.root, ARMS[BASE], 0).others(part)
        return {} if found is None else {row.name: row for row in found.rows}

    def difference_from(self, row: Row, arm: str, part: str = SOLVE, *, level: float = LEVEL) -> Interval:
        """Solve rate of an arm minus that of a row, paired by task.

        Raises:
            UsageError: the arm is not measured, or they have no task in common.
        """
        return require_difference(self.recipe(arm, part), recipe_of(row.name, [row]), level)

    def require_same_settings(self, arm: str) -> None:
        """Raise if the seeds of an arm were made with different settings.

        Raises:
            UsageError: they were; the message names two of them.
        """
        found = [(cell, made) for cell in self.cells(arm) if (made := cell.made) is not None]
        for cell, made in found[1:]:
            first, expected = found[0]
            if differing := differing_settings(made.settings, expected.settings):
                raise UsageError(
                    f"{cell.name} was made with {differing[0]}, and {first.name} with {differing[1]}; delete "
                    f"one's folder, {cell.path} or {first.path}, to make and measure it again"
                )

    def require_settings(self, arm: str, settings: Mapping[str, object]) -> None:
        """Raise if a seed of an arm was made with other settings than it would be now.

        Raises:
            UsageError: it was, so seeds that are made from now on could not be taken together with it.
        """
        for cell in self.cells(arm):
            made = cell.made
            if made is not None and (differing := differing_settings(made.settings, settings)):
                raise UsageError(
                    f"{cell.name} was made with {differing[0]}, and now it would be {differing[1]}; go on "
                    f"with the version that made it ({made.commit}), or delete {cell.path} to make and "
                    "measure it again"
                )

    def require_same_conditions(self, arms: Sequence[str], part: str) -> None:
        """Raise if cells were measured on other tasks, with other code, weights or limits.

        Raises:
            UsageError: they were; the message names two of them.
        """
        found = [
            (cell, measured)
            for arm in arms
            for cell in self.cells(arm)
            if (measured := self.measured(cell, part)) is not None
        ]
        for cell, measured in found[1:]:
            first, expected = found[0]
            if differing := _differing(measured, expected):
                raise UsageError(
                    f"{cell.name} and {first.name} were measured with different {differing[0]}; "
                    f"{cell.again(part)}, or likewise for {first.name}"
                )
        base = CellFolder.of(self.root, ARMS[BASE], 0)
        scripts = base.others(part)
        if found and scripts is not None and scripts.conditions not in (None, found[0][1].conditions):
            raise UsageError(
                f"scripts and {found[0][0].name} were measured under different conditions; "
                f"{base.again(others_part(part))}"
            )


def differing_settings(one: Mapping[str, object], other: Mapping[str, object]) -> tuple[str, str] | None:
    """The first setting that differs, as ``name = value`` of both.

    One that only one of them has came with a later version, whose default is what there was before. One that
    training no longer has is not compared.
    """
    known = to_mapping(TrainConfig())
    mine, theirs = ({**known, **settings} for settings in (one, other))
    names = (name for name in known.keys() | (one.keys() & other.keys()) if mine[name] != theirs[name])
    name = min(names, default=None)
    return None if name is None else (f"{name} = {mine[name]}", f"{name} = {theirs[name]}")


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
