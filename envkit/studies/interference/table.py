"""Compare adapters on every environment, to see whether one adapter for several tasks costs any of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from envkit.errors import UsageError
from envkit.measure.number_text import NONE, bounds, number, percent, points
from envkit.measure.report.data import Difference, ReportData, Row
from envkit.measure.report.page import templates
from envkit.measure.report.summary import summarise_difference, summarise_row
from envkit.measure.report.tables import Table
from envkit.measure.stats import LEVEL, RESAMPLES, Interval
from envkit.runtime.store import folder_name, write_atomic

#: How far one adapter may be behind an environment's specialist.
MARGIN: Final = 0.05
#: Kinds of `MatrixRow`.
BASE, SPECIALIST, JOINT, MERGED = "base", "specialist", "joint", "merged"
#: Largest ratio of training episodes at which two arms are called equally trained.
_EQUAL: Final = 1.1


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """One row of the matrix: the base, or an adapter and what it was trained on.

    Args:
        row: its name in the reports.
        kind: ``"base"``, ``"specialist"`` (trained on one environment), ``"joint"`` (on several) or
            ``"merged"`` (of the specialists, without training).
        episodes: environment -> episodes of RL that it was trained on; those of a merged one's parts.
        known_answers: known answers that the warm start of a specialist or joint one imitated, of all its
            environments together.
    """

    row: str
    kind: str
    episodes: Mapping[str, int] = field(default_factory=dict[str, int])
    known_answers: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in (BASE, SPECIALIST, JOINT, MERGED):
            raise ValueError(f"kind is {self.kind!r}; expected base, specialist, joint or merged")


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """An adapter on an environment.

    Args:
        rate: solve rate.
        difference: solve rate minus that of the row it is compared with, paired by task; ``None`` for that
            row itself, or if there is none.
        detectable: smallest true difference that as many tasks would show with 80 % probability; NaN or
            infinite if it is not known.
        corrected: the difference at a level that Bonferroni's correction gives for as many environments.
    """

    rate: Interval
    difference: Interval | None = None
    detectable: float = math.nan
    corrected: Interval | None = None


@dataclass(frozen=True, slots=True)
class Interference:
    """The matrix.

    Args:
        environments: its columns.
        arms: its rows.
        cells: for each row, one cell per environment.
        gains: for each environment, its specialist minus the base; ``None`` without both.
    """

    environments: tuple[str, ...]
    arms: tuple[MatrixRow, ...]
    cells: tuple[tuple[MatrixCell, ...], ...]
    gains: tuple[Interval | None, ...]

    def learned(self, row: int) -> list[int]:
        """Numbers of the environments that an adapter was trained on."""
        arm = self.arms[row]
        return [number for number, name in enumerate(self.environments) if name in arm.episodes]

    def verdict(self, row: int) -> str:
        """Say whether one adapter is as good as each specialist of its environments, up to `MARGIN`.

        Args:
            row: number of the row.

        Returns:
            ``"FAILED"`` if a corrected interval lies below minus the margin; ``"HELD"`` if every interval
            lies above it, and every specialist has gained more than the margin, so that there is something
            to lose; else ``"UNDECIDED"``.
        """
        columns = self.learned(row)
        corrected = [self.cells[row][column].corrected for column in columns]
        if any(each is not None and each.high < -MARGIN for each in corrected):
            return "FAILED"
        differences = [self.cells[row][column].difference for column in columns]
        lows = [-1.0 if each is None else each.low for each in differences]
        gains = [-1.0 if gain is None else gain.low for gain in (self.gains[column] for column in columns)]
        held = columns and min(lows) > -MARGIN and min(gains) > MARGIN
        return "HELD" if held else "UNDECIDED"


def make_matrix(reports: Sequence[ReportData], arms: Sequence[MatrixRow]) -> Interference:
    """Make the matrix from the reports of all environments.

    Args:
        reports: one per environment of the arms, each with a row of every arm.
        arms: the rows.

    Raises:
        UsageError: a report lacks an arm's row, or a row has no graded episode to compare.
    """
    columns: list[list[MatrixCell]] = []
    gains: list[Interval | None] = []
    bases = [arm.row for arm in arms if arm.kind == BASE]
    order = [name for arm in arms for name in arm.episodes]
    reports = sorted(reports, key=lambda report: order.index(report.environment))
    for report in reports:
        rows = {row.name: row for row in report.rows}
        if missing := [arm.row for arm in arms if arm.row not in rows]:
            raise UsageError(
                f"the report of {report.environment} has no row {missing[0]!r} yet; resume the run to play it"
            )
        special = [a.row for a in arms if a.kind == SPECIALIST and report.environment in a.episodes]
        against = rows[special[0]] if special else None
        columns.append([make_cell(rows[arm.row], against, len(reports)) for arm in arms])
        gains.append(make_cell(against, rows[bases[0]]).difference if against is not None and bases else None)
    return Interference(
        tuple(report.environment for report in reports),
        tuple(arms),
        tuple(tuple(column[row] for column in columns) for row in range(len(arms))),
        tuple(gains),
    )


def make_cell(row: Row, against: Row | None, comparisons: int = 1) -> MatrixCell:
    """Measure a row, and compare it with another.

    Args:
        row, against: the rows.
        comparisons: number of cells that are judged together.

    Raises:
        UsageError: a row has no graded episode, or both have none of the same task.
    """
    rate = summarise_row(row, (1,)).solve_rate.interval
    if rate is None:
        raise UsageError(f"{row.name} has no graded episode; all are void: read why in its episodes")
    if against is None or against.name == row.name:
        return MatrixCell(rate)
    pair = Difference(row.name, against.name, "")
    found = summarise_difference(pair, row, against)
    if found.interval is None:
        raise UsageError(f"{row.name} and {against.name} have no graded task in common")
    corrected = summarise_difference(pair, row, against, level=1 - (1 - LEVEL) / comparisons).interval
    return MatrixCell(rate, found.interval, found.detectable, corrected)


def sentences(found: Interference) -> tuple[str, ...]:
    """Say what the matrix shows, what it could have shown, and whether the adapters are comparable."""
    said: list[str] = []
    gained = [
        f"{name} {points(gain.estimate)} {bounds(gain, signed=True)}"
        for name, gain in zip(found.environments, found.gains, strict=True)
        if gain is not None
    ]
    if gained:
        said.append(
            f"Specialist minus base: {', '.join(gained)}. Unless each is more than {percent(MARGIN)} points, "
            "nothing is called HELD: what was not learned cannot be lost."
        )
    detectable = [cell.detectable for row in found.cells for cell in row if math.isfinite(cell.detectable)]
    if detectable:
        said.append(
            f"With these tasks, a difference of {percent(max(detectable))} points or more would be seen in "
            "four of five repetitions."
        )
    for row, arm in enumerate(found.arms):
        if arm.kind not in (JOINT, MERGED):
            continue
        behind = [
            f"{found.environments[column]} {points(difference.estimate)} {bounds(difference, signed=True)}"
            for column in found.learned(row)
            if (difference := found.cells[row][column].difference) is not None
        ]
        said.append(
            f"{arm.row}, within {percent(MARGIN)} points of every specialist: {found.verdict(row)} "
            f"({', '.join(behind) or 'no specialist to compare with'})."
        )
        if others := [name for name in found.environments if name not in arm.episodes]:
            said.append(f"{arm.row} was not trained on {', '.join(others)}, and is not judged there.")
    said += _unequal(found.arms)
    return (*said, "One seed an arm: the intervals say nothing of other seeds.")


def _unequal(arms: Sequence[MatrixRow]) -> list[str]:
    """Name joint arms that had other numbers of episodes or known answers than the specialists."""
    special = {env: arm for arm in arms if arm.kind == SPECIALIST for env in arm.episodes}
    said: list[str] = []
    for arm in arms:
        if arm.kind != JOINT:
            continue
        theirs = [special[env] for env in arm.episodes if env in special]
        for one in theirs:
            [(env, count)] = one.episodes.items()
            if not _about_equal(arm.episodes[env], count):
                said.append(
                    f"{arm.row} was trained on {arm.episodes[env]:,} episodes of {env}, its specialist on "
                    f"{count:,}: the comparison is not at equal episodes."
                )
        known = [one.known_answers for one in theirs if one.known_answers is not None]
        if arm.known_answers is None or len(known) < len(arm.episodes):
            continue
        if not _about_equal(arm.known_answers, sum(known)):
            said.append(
                f"{arm.row} imitated {arm.known_answers:,} known answers, its specialists {sum(known):,} "
                "together: the comparison is not at equal known answers."
            )
    return said


def _about_equal(one: int, other: int) -> bool:
    return 1 / _EQUAL <= (one + 1) / (other + 1) <= _EQUAL


def rates_table(found: Interference) -> Table:
    """Solve rates: one line per adapter, one column per environment."""
    return Table(
        f"Solve rate in percent, with {100 * LEVEL:g} % intervals",
        ("Adapter", *found.environments, "Episodes of RL"),
        tuple(
            (
                arm.row,
                *(f"{percent(cell.rate.estimate)} {bounds(cell.rate)}" for cell in cells),
                ", ".join(f"{number(count, 0)} {name}" for name, count in arm.episodes.items()) or NONE,
            )
            for arm, cells in zip(found.arms, found.cells, strict=True)
        ),
    )


def differences_table(found: Interference) -> Table:
    """Differences from each environment's specialist in points, paired by task."""
    return Table(
        f"Points more or less than the environment's specialist, with {100 * LEVEL:g} % intervals",
        ("Adapter", *found.environments),
        tuple(
            (arm.row, *(_difference(cell.difference) for cell in cells))
            for arm, cells in zip(found.arms, found.cells, strict=True)
        ),
    )


def _difference(interval: Interval | None) -> str:
    return NONE if interval is None else f"{points(interval.estimate)} {bounds(interval, signed=True)}"


def write_page(found: Interference, folder: Path, command: str) -> Path:
    """Write ``interference.md`` to a run folder, in place of an older one; returns its path."""
    page = folder / "interference.md"
    text = (
        templates("envkit.studies.interference")
        .get_template("interference.md.j2")
        .render(
            rates=rates_table(found),
            differences=differences_table(found),
            sentences=sentences(found),
            resamples=number(RESAMPLES, 0),
            folders={name: folder_name(name) for name in found.environments},
            command=command,
        )
    )
    write_atomic(page, text.encode())
    return page
