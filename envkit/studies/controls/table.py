"""Compare ways of changing a model on one environment: what each is worth, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from envkit.errors import UsageError
from envkit.measure.number_text import NONE, bounds, nats, number, percent, points
from envkit.measure.report.data import ReportData
from envkit.measure.report.page import templates
from envkit.measure.report.tables import Table
from envkit.measure.stats import LEVEL, RESAMPLES, Interval
from envkit.runtime.store import folder_name, write_atomic
from envkit.studies.interference.table import MatrixCell, make_cell

#: ``control`` of the untouched base.
BASE: Final = "none"
#: ``control`` of the base with another system message.
PROMPT: Final = "prompt"
PAGE: Final = "control.md"


@dataclass(frozen=True, slots=True)
class Control:
    """The base, or an adapter: how it changes the base, and what that took.

    Args:
        row: its name in the report.
        control: what it changes; see `envkit.training.config.TrainConfig`. ``"none"`` for the base, and
            ``"prompt"`` for the base with another system message.
        rank: of its matrices; 0 if it has none.
        size_bytes: of its weights, or of its message, as they are shipped.
        examples: known answers that it learned from; ``None`` if its training is not known.
        sampled_tokens: that RL, or the search for a message, sampled for it; ``None`` likewise.
    """

    row: str
    control: str = BASE
    rank: int = 0
    size_bytes: int = 0
    examples: int | None = 0
    sampled_tokens: int | None = 0


@dataclass(frozen=True, slots=True)
class Controlled:
    """One row of the comparison.

    Args:
        control: what it is.
        cell: its solve rate, and the difference from the base.
        kl: divergence from the base in nats per sampled token, on its own episodes; ``None`` if it was not
            measured. 0 for the base.
    """

    control: Control
    cell: MatrixCell
    kl: Interval | None

    @property
    def costs(self) -> tuple[float, ...]:
        """Bytes, sampled tokens and divergence; infinite where they are not known."""
        tokens = self.control.sampled_tokens
        kl = math.inf if self.kl is None else max(self.kl.estimate, 0.0)
        return self.control.size_bytes, math.inf if tokens is None else tokens, kl


@dataclass(frozen=True, slots=True)
class Controls:
    """The comparison on one environment."""

    environment: str
    rows: tuple[Controlled, ...]

    @property
    def front(self) -> frozenset[str]:
        """Names of the rows on the Pareto front: no other solves as much and costs no more in every respect.

        It goes by the estimates: rows whose intervals overlap may change places in a repetition. A row whose
        costs are not all known is not on it, and keeps no other from it.
        """
        known = [row for row in self.rows if all(map(math.isfinite, row.costs))]
        return frozenset(
            row.control.row for row in known if not any(_dominates(other, row) for other in known)
        )


def _dominates(one: Controlled, other: Controlled) -> bool:
    """True if a row is at least as good as another in every respect, and better in one."""
    ours, theirs = (-one.cell.rate.estimate, *one.costs), (-other.cell.rate.estimate, *other.costs)
    return ours != theirs and all(mine <= yours for mine, yours in zip(ours, theirs, strict=True))


def make_controls(report: ReportData, controls: Sequence[Control], kl: Mapping[str, Interval]) -> Controls:
    """Make the comparison from a report.

    Args:
        report: with a row of every control.
        controls: the rows, the base first.
        kl: divergences by row.

    Raises:
        UsageError: the report lacks a row, or a row has no graded episode.
    """
    rows = {row.name: row for row in report.rows}
    if missing := [control.row for control in controls if control.row not in rows]:
        raise UsageError(f"the report has no row {missing[0]!r} yet; resume the run to play it")
    base = rows[controls[0].row]
    none = Interval(0.0, 0.0, 0.0, 0)
    return Controls(
        report.environment,
        tuple(
            Controlled(
                control,
                make_cell(rows[control.row], base),
                none if control.control == BASE else kl.get(control.row),
            )
            for control in controls
        ),
    )


def table_of(found: Controls) -> Table:
    """One line per row, the cheapest to ship first."""
    rows = sorted(found.rows, key=lambda row: row.costs)
    return Table(
        f"Solve rate on {found.environment} in percent and in points more than the base, with "
        f"{100 * LEVEL:g} % intervals, and what it takes",
        (
            *("Row", "Changes", "Solves", "More than the base", "Bytes", "Known answers", "Sampled tokens"),
            *("KL to the base, nats a token", "On the front"),
        ),
        tuple(
            (
                row.control.row,
                _kind(row.control),
                f"{percent(row.cell.rate.estimate)} {bounds(row.cell.rate)}",
                _points(row.cell.difference),
                number(row.control.size_bytes, 0),
                _count(row.control.examples),
                _count(row.control.sampled_tokens),
                NONE if row.kl is None else nats(row.kl),
                "yes" if row.control.row in found.front else "",
            )
            for row in rows
        ),
    )


def _kind(control: Control) -> str:
    return f"{control.control}, rank {control.rank}" if control.rank else control.control


def _points(difference: Interval | None) -> str:
    return NONE if difference is None else f"{points(difference.estimate)} {bounds(difference, signed=True)}"


def _count(value: int | None) -> str:
    return NONE if value is None else number(value, 0)


def sentences(found: Controls) -> tuple[str, ...]:
    """Say how to read the comparison."""
    return (
        "On the front: no other row solves as much and takes no more bytes, sampled tokens and divergence. "
        "It goes by the estimates; rows whose intervals overlap may change places in a repetition. Rows "
        "whose costs are not all known are left out of it.",
        "KL: estimated on episodes that each row plays at temperature 1.",
        "One seed a row: the intervals say nothing of other seeds.",
    )


def write_page(found: Controls, folder: Path, command: str) -> Path:
    """Write ``control.md`` to a run folder, in place of an older one; returns its path."""
    text = (
        templates("envkit.studies.controls")
        .get_template("controls.md.j2")
        .render(
            table_of=table_of(found),
            sentences=sentences(found),
            resamples=number(RESAMPLES, 0),
            folder=folder_name(found.environment),
            command=command,
        )
    )
    write_atomic(folder / PAGE, text.encode())
    return folder / PAGE
