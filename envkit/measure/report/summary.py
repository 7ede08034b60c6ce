"""Compute a report's numbers from its rows, for the pages and for ``--json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envkit.measure.report.data import Difference, ReportData, Row, TaskResult
from envkit.measure.stats import (
    LEVEL,
    Interval,
    cluster_sd,
    minimum_detectable,
    paired_interval,
    pass_at_k,
    rate_interval,
)
from envkit.runtime.plain import stored_as


@dataclass(frozen=True, slots=True)
class Rate:
    """pass@k of one row.

    Args:
        k: number of samples drawn.
        interval: mean over tasks, in [0, 1]; ``None`` if no task has k graded samples.
        tasks: number of tasks with at least k graded samples.
    """

    k: int
    interval: Interval | None
    tasks: int


@dataclass(frozen=True, slots=True)
class RowSummary:
    """Numbers of one row.

    Args:
        name: the row's name.
        control: True if it has an expected result and does not compete.
        tasks: tasks with at least one graded sample.
        rates: one per requested k.
        solve_rate: pass@1, also if 1 was not requested.
        tokens_per_solve: completion tokens, failures included, per solved sample; NaN if nothing was solved.
        seconds: wall time.
        samples: graded samples.
        voids: samples lost to sandbox or provider failures; only ``seconds`` includes them.
        held_out: solved samples that held-out checks judged as well.
        held_out_failed: how many of these failed one: the reward was earned without the work.
        rewards: source of reward -> its mean over the graded samples; their sum is the mean reward.
    """

    name: str
    control: bool
    tasks: int
    rates: tuple[Rate, ...]
    solve_rate: Rate
    tokens_per_solve: float
    seconds: float
    samples: int
    voids: int
    held_out: int
    held_out_failed: int
    rewards: Mapping[str, float] = field(hash=False)


@dataclass(frozen=True, slots=True)
class DifferenceSummary:
    """A paired difference of pass@1.

    Args:
        pair: the rows and the meaning of their difference.
        interval: in [-1, 1]; ``None`` if no task was measured in both rows.
        tasks: number of tasks measured in both rows.
        unpaired: number of tasks measured in one row only; they are left out.
        detectable: true difference detected with 80 % power, given the observed spread; infinite if too few
            sources differ to know it.
    """

    pair: Difference
    interval: Interval | None
    tasks: int
    unpaired: int
    detectable: float


@dataclass(frozen=True, slots=True)
class OperatorSummary:
    """Rates on the tasks of one kind, such as a mutation operator.

    Args:
        operator: kind of task.
        tasks: number of tasks.
        rates: for each requested k, the pass@k of each contestant (NaN if not measured).
    """

    operator: str
    tasks: int
    rates: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """All numbers computed from a `ReportData`."""

    rows: tuple[RowSummary, ...] = field(metadata=stored_as("arms"))
    differences: tuple[DifferenceSummary, ...]
    operators: tuple[OperatorSummary, ...]


def summarise(data: ReportData) -> Summary:
    """Compute every number of the report; equal data gives equal numbers."""
    rows = {row.name: row for row in data.rows}
    return Summary(
        rows=tuple(summarise_row(row, data.ks) for row in data.rows),
        differences=tuple(
            summarise_difference(pair, rows[pair.row], rows[pair.against], rows.get(pair.unsolved_by))
            for pair in data.differences
        ),
        operators=rates_by_operator([row for row in data.rows if row.expected is None], data.ks),
    )


def summarise_row(row: Row, ks: Sequence[int]) -> RowSummary:
    """Summarise one row; ``ks`` are the k of its pass@k rates."""
    solved = sum(result.solved for result in row.results)
    written = sum(result.completion_tokens for result in row.results)
    solve_rate = _rate(row.results, 1)
    return RowSummary(
        name=row.name,
        control=row.expected is not None,
        tasks=solve_rate.tasks,
        rates=tuple(_rate(row.results, k) for k in ks),
        solve_rate=solve_rate,
        tokens_per_solve=written / solved if solved else math.nan,
        seconds=sum(result.seconds for result in row.results),
        samples=sum(result.samples for result in row.results),
        voids=sum(result.voids for result in row.results),
        held_out=sum(result.held_out for result in row.results),
        held_out_failed=sum(result.held_out_failed for result in row.results),
        rewards=_mean_rewards(row.results),
    )


def _mean_rewards(items: Sequence[TaskResult]) -> dict[str, float]:
    sources = dict.fromkeys(source for result in items for source in result.rewards)
    samples = max(1, sum(result.samples for result in items))
    return {
        source: math.fsum(result.rewards.get(source, 0.0) for result in items) / samples for source in sources
    }


def _rate(items: Sequence[TaskResult], k: int) -> Rate:
    counted = [result for result in items if result.samples >= k]
    if not counted:
        return Rate(k, None, 0)
    values = pass_at_k([result.samples for result in counted], [result.solved for result in counted], k)
    return Rate(k, rate_interval(values, [result.source for result in counted]), len(counted))


def summarise_difference(
    pair: Difference, row: Row, against: Row, searched: Row | None = None, *, level: float = LEVEL
) -> DifferenceSummary:
    """Paired difference of two rows' pass@1, over the tasks that both were measured on.

    Args:
        pair: the comparison.
        row, against: its rows.
        searched: the row of ``pair.unsolved_by``; tasks that it was not measured on do not count.
        level: of the interval.
    """
    first, second = solve_rates(row.results), solve_rates(against.results)
    if searched is not None:
        left = {task for task, rate in solve_rates(searched.results).items() if rate == 0}
        first, second = ({task: rates[task] for task in left & rates.keys()} for rates in (first, second))
    common = sorted(first.keys() & second.keys())
    unpaired = len(first.keys() ^ second.keys())
    if not common:
        return DifferenceSummary(pair, None, 0, unpaired, math.inf)
    source = {result.task: result.source for result in row.results}
    clusters = [source[task] for task in common]
    a, b = [first[task] for task in common], [second[task] for task in common]
    interval = paired_interval(a, b, clusters, level=level)
    spread = cluster_sd([x - y for x, y in zip(a, b, strict=True)], clusters)
    # Where few sources differ, or none, the spread is unknown: the one observed would be too small.
    is_known = spread > 0 and not (interval.exact or interval.widened)
    detectable = minimum_detectable(interval.clusters, spread) if is_known else math.inf
    return DifferenceSummary(pair, interval, len(common), unpaired, detectable)


def rates_by_operator(rows: Sequence[Row], ks: Sequence[int] = (1,)) -> tuple[OperatorSummary, ...]:
    """Rates of every row by kind of task, sorted by kind, for each k."""
    tasks: dict[str, set[str]] = {}
    for result in (result for row in rows for result in row.results if result.operator and result.samples):
        tasks.setdefault(result.operator, set()).add(result.task)
    rates = [[_pass_rates(row.results, k) for row in rows] for k in ks]
    return tuple(
        OperatorSummary(
            operator, len(ids), tuple(tuple(_mean_of(row, ids) for row in by_row) for by_row in rates)
        )
        for operator, ids in sorted(tasks.items())
    )


def solve_rates(items: Sequence[TaskResult]) -> dict[str, float]:
    """Share of solved samples, by task; tasks without a graded sample are left out."""
    return {result.task: result.solved / result.samples for result in items if result.samples}


def _pass_rates(items: Sequence[TaskResult], k: int) -> dict[str, float]:
    """pass@k by task; tasks with fewer graded samples are left out."""
    counted = [result for result in items if result.samples >= k]
    values = pass_at_k([result.samples for result in counted], [result.solved for result in counted], k)
    return {result.task: float(value) for result, value in zip(counted, values, strict=True)}


def _mean_of(rates: dict[str, float], tasks: set[str]) -> float:
    values = [rates[task] for task in sorted(tasks) if task in rates]
    return sum(values) / len(values) if values else math.nan
