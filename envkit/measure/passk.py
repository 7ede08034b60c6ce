"""Compare two rows by pass@k: does training make new tasks solvable, or rare solutions frequent?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from envkit.errors import UsageError
from envkit.measure.leaderboard.data import are_equal_scripts, common_conditions
from envkit.measure.number_text import bounds, percent, points
from envkit.measure.report.data import ReportData, Row, TaskResult
from envkit.measure.report.tables import Table
from envkit.measure.stats import Interval, paired_interval, pass_at_k, rate_interval

#: Share of samples from which on a task counts as learned.
_LEARNED = 0.5


@dataclass(frozen=True, slots=True)
class PassPoint:
    """Two rows with k samples a task.

    Args:
        k: number of samples.
        row, against: chance that at least one of k samples solves a task (unbiased, Chen et al. 2021,
            arXiv:2107.03374).
        difference: ``row`` minus ``against``, paired by task.
    """

    k: int
    row: Interval
    against: Interval
    difference: Interval


@dataclass(frozen=True, slots=True)
class PassComparison:
    """Two rows of one environment, by pass@k.

    Args:
        environment: its name.
        row: the row that is looked at, such as a trained adapter.
        against: the row that it is compared with, such as its base.
        tasks: number of tasks that both rows have.
        points: for k = 1, 2, 4 and so on, and the largest k that both rows have for every task.
        learned: tasks that ``row`` solves in at least half of its samples, and ``against`` in fewer.
        learned_from_none: those of them that ``against`` never solved.
        lost: tasks that ``against`` solves in at least half of its samples, and ``row`` in fewer. Two
            equal rows have about as many of them as of those that are learned.
    """

    environment: str
    row: str
    against: str
    tasks: int
    points: tuple[PassPoint, ...]
    learned: tuple[str, ...]
    learned_from_none: tuple[str, ...]
    lost: tuple[str, ...]

    @property
    def crossing(self) -> int | None:
        """The smallest k from which on ``against`` solves as many tasks or more.

        ``None`` if ``row`` is ahead at the largest k, whatever it is at smaller ones.
        """
        found = None
        for point in reversed(self.points):
            if point.difference.estimate > 0:
                break
            found = point.k
        return found


def compare_pass_at_k(
    reports: Sequence[ReportData], row: str | None = None, against: str | None = None
) -> list[PassComparison]:
    """Compare rows of the same environment by pass@k.

    Args:
        reports: of one or several runs; those of one environment must have been measured under equal
            conditions.
        row: name of the row to look at; by default every row of a trained adapter.
        against: name of the row to compare with; by default the first untouched model of the row's weights.

    Raises:
        UsageError: no such row, no task in common, a name for two rows of an environment, or conditions
            differ.
    """
    found: list[PassComparison] = []
    for environment in dict.fromkeys(report.environment for report in reports):
        measured = [report for report in reports if report.environment == environment]
        if len(measured) > 1:
            common_conditions(measured)
        rows: dict[str, Row] = {}
        for each in (each for report in measured for each in report.rows):
            same = rows.setdefault(each.name, each)
            if each != same and each.expected is None and not are_equal_scripts(each, same):
                raise UsageError(
                    f"two rows of {environment} are named {each.name!r}; name one run, or one seed of it: "
                    "RUN/seed-N"
                )
        if not rows:
            raise UsageError(f"{environment}: nothing was measured")
        chosen = [row] if row else [name for name, each in rows.items() if each.origin.adapter]
        for name in chosen:
            base = against or (_untouched(rows, rows[name]) if name in rows else name)
            for wanted in (name, base):
                if wanted not in rows:
                    missing = (
                        f"no row of the untouched model of {name}, asked alike, to compare with; name one "
                        "(--against)"
                    )
                    named = f"no row {wanted!r}" if wanted else missing
                    raise UsageError(f"{environment} has {named}; it has: {', '.join(rows)}")
            if name != base:
                found.append(compare_rows(rows[name], rows[base], environment))
    if not found:
        raise UsageError("no row of a trained adapter to look at; name one (--row)")
    return found


def _untouched(rows: Mapping[str, Row], row: Row) -> str:
    """Name of the first untouched model with a row's weights that was asked alike; empty if there is none."""
    for name, each in rows.items():
        origin = each.origin
        touched = origin.adapter or origin.system or origin.shots
        is_base = origin.kind == "local" and not touched and origin.digest == row.origin.digest
        if is_base and not origin.unequal_settings(row.origin):
            return name
    return ""


def compare_rows(row: Row, against: Row, environment: str = "") -> PassComparison:
    """Compare two rows by pass@k, on the tasks that both have.

    Args:
        row, against: see `PassComparison`.
        environment: of both.

    Raises:
        UsageError: they have no task in common.
    """
    before = {result.task: result for result in against.results if result.samples}
    pairs = [(after, before[after.task]) for after in row.results if after.samples and after.task in before]
    if not pairs:
        raise UsageError(f"{environment}: {row.name} and {against.name} have no task in common")
    most = min(min(after.samples, other.samples) for after, other in pairs)
    learned = [
        (after, other) for after, other in pairs if _rate(after) >= _LEARNED and _rate(other) < _LEARNED
    ]
    return PassComparison(
        environment,
        row.name,
        against.name,
        len(pairs),
        tuple(_point(k, pairs) for k in _ks(most)),
        tuple(after.task for after, _ in learned),
        tuple(after.task for after, other in learned if not other.solved),
        tuple(after.task for after, other in pairs if _rate(after) < _LEARNED <= _rate(other)),
    )


def _ks(most: int) -> Iterable[int]:
    """1, 2, 4 and so on, and the largest."""
    return sorted({*(2**power for power in range(math.floor(math.log2(most)) + 1)), most})


def _point(k: int, pairs: Sequence[tuple[TaskResult, TaskResult]]) -> PassPoint:
    clusters = [after.source for after, _ in pairs]
    rates = [
        pass_at_k([result.samples for result in results], [result.solved for result in results], k)
        for results in zip(*pairs, strict=True)
    ]
    return PassPoint(
        k,
        rate_interval(rates[0], clusters),
        rate_interval(rates[1], clusters),
        paired_interval(rates[0], rates[1], clusters),
    )


def _rate(result: TaskResult) -> float:
    return result.solved / result.samples


def table_of(found: PassComparison) -> Table:
    """Both rates and their difference, one line per k."""
    return Table(
        f"{found.environment}: {found.row} against {found.against}, {found.tasks} tasks",
        ("k", found.row, "", found.against, "", "difference", ""),
        tuple(
            (
                str(point.k),
                f"{percent(point.row.estimate)} %",
                bounds(point.row),
                f"{percent(point.against.estimate)} %",
                bounds(point.against),
                points(point.difference.estimate),
                bounds(point.difference, signed=True),
            )
            for point in found.points
        ),
    )


def sentences(found: PassComparison) -> tuple[str, ...]:
    """Say in sentences what a comparison shows."""
    most = found.points[-1].k
    behind = [point.k for point in found.points if point.difference.estimate <= 0]
    if found.crossing is not None:
        lead = f"From k = {found.crossing} on, {found.against} solves as many tasks or more."
    elif behind:
        lead = f"{found.row} is ahead at every k up to {most} except k = {_listed(behind)}."
    else:
        lead = f"{found.row} is ahead at every k up to {most}."
    count, none = len(found.learned), len(found.learned_from_none)
    learned = "No task is learned: solved in half of the samples or more, and in fewer before."
    if count:
        learned = (
            f"Learned, that is, solved in half of the samples or more, and in fewer before: {count} tasks. "
            f"{found.against} solved {count - none} of them at least once, and {none} never."
        )
    if found.lost:
        learned += f" The other way round: {len(found.lost)}. Two equal rows have about as many both ways."
    above = [point.k for point in found.points if point.difference.low > 0]
    below = [point.k for point in found.points if point.difference.high < 0]
    clear = [f"above zero at k = {_listed(above)}"] if above else []
    clear += [f"below zero at k = {_listed(below)}"] if below else []
    shown = f"is clear of zero: {' and '.join(clear)}" if clear else "includes zero at every k"
    return lead, learned, f"The interval of the difference {shown}."


def _listed(ks: Sequence[int]) -> str:
    return ", ".join(map(str, ks))
