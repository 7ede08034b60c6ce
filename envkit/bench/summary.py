"""From a run's raw rows to the numbers that a report prints, and that ``--json`` hands out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from envkit.bench.data import Arm, Difference, Item, ReportData
from envkit.bench.stats import (
    Interval,
    cluster_sd,
    minimum_detectable,
    paired_interval,
    pass_at_k,
    rate_interval,
)


@dataclass(frozen=True, slots=True)
class Rate:
    """pass@k of one arm.

    Args:
        k: size of the draw.
        interval: over tasks, in [0, 1]; ``None`` when no task has k graded samples.
        tasks: tasks behind it, those with at least k graded samples.
    """

    k: int
    interval: Interval | None
    tasks: int


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm in numbers.

    Args:
        name: the arm's name.
        control: it has an expected result and is no contestant.
        tasks: tasks with at least one graded sample.
        rates: one per k asked for.
        solve_rate: pass@1 whether asked for or not.
        tokens_per_solve: completion tokens, failures included, per solved sample; NaN when none was.
        seconds: wall time.
        samples: graded samples.
        voids: samples lost to broken machinery, in no other number.
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


@dataclass(frozen=True, slots=True)
class DifferenceSummary:
    """A paired difference of pass@1.

    Args:
        pair: which arms, and what their difference means.
        interval: in [-1, 1]; ``None`` when no task was measured in both arms.
        tasks: tasks measured in both.
        unpaired: tasks measured in one arm only, left out.
        detectable: true difference found with 80 % power, from the observed spread; infinity where there
            was none.
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
        operator: the kind.
        tasks: how many there are of it.
        rates: pass@k for each k that was asked, in that order: one per contestant (NaN: not measured).
    """

    operator: str
    tasks: int
    rates: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """All that is computed from a `ReportData`."""

    arms: tuple[ArmSummary, ...]
    differences: tuple[DifferenceSummary, ...]
    operators: tuple[OperatorSummary, ...]


def summarise(data: ReportData) -> Summary:
    """Compute every number of the report; equal data gives equal numbers."""
    arms = {arm.name: arm for arm in data.arms}
    return Summary(
        arms=tuple(of_arm(arm, data.ks) for arm in data.arms),
        differences=tuple(of_pair(pair, arms[pair.arm], arms[pair.against]) for pair in data.differences),
        operators=by_operator([arm for arm in data.arms if arm.expected is None], data.ks),
    )


def of_arm(arm: Arm, ks: Sequence[int]) -> ArmSummary:
    """One arm in numbers; ``ks`` are those of its rates."""
    solved = sum(item.solved for item in arm.items)
    written = sum(item.completion_tokens for item in arm.items)
    solve_rate = _rate(arm.items, 1)
    return ArmSummary(
        name=arm.name,
        control=arm.expected is not None,
        tasks=solve_rate.tasks,
        rates=tuple(_rate(arm.items, k) for k in ks),
        solve_rate=solve_rate,
        tokens_per_solve=written / solved if solved else math.nan,
        seconds=sum(item.seconds for item in arm.items),
        samples=sum(item.samples for item in arm.items),
        voids=sum(item.voids for item in arm.items),
    )


def _rate(items: Sequence[Item], k: int) -> Rate:
    kept = [item for item in items if item.samples >= k]
    if not kept:
        return Rate(k, None, 0)
    values = pass_at_k([item.samples for item in kept], [item.solved for item in kept], k)
    return Rate(k, rate_interval(values, [item.source for item in kept]), len(kept))


def of_pair(pair: Difference, arm: Arm, against: Arm) -> DifferenceSummary:
    """The paired difference of two arms' pass@1, over the tasks that both were measured on."""
    first, second = solve_rates(arm.items), solve_rates(against.items)
    common = sorted(first.keys() & second.keys())
    unpaired = len(first.keys() ^ second.keys())
    if not common:
        return DifferenceSummary(pair, None, 0, unpaired, math.inf)
    source = {item.task: item.source for item in arm.items}
    clusters = [source[task] for task in common]
    a, b = [first[task] for task in common], [second[task] for task in common]
    interval = paired_interval(a, b, clusters)
    spread = cluster_sd([x - y for x, y in zip(a, b, strict=True)], clusters)
    # Where nothing differed, nothing is known of how differences spread; least of all that they do not.
    detectable = minimum_detectable(interval.clusters, spread) if spread > 0 else math.inf
    return DifferenceSummary(pair, interval, len(common), unpaired, detectable)


def by_operator(arms: Sequence[Arm], ks: Sequence[int] = (1,)) -> tuple[OperatorSummary, ...]:
    """Rates on the tasks of every kind, in its order, for each of the ``ks``."""
    tasks: dict[str, set[str]] = {}
    for item in (item for arm in arms for item in arm.items if item.operator and item.samples):
        tasks.setdefault(item.operator, set()).add(item.task)
    rates = [[_pass_rates(arm.items, k) for arm in arms] for k in ks]
    return tuple(
        OperatorSummary(
            operator, len(posed), tuple(tuple(_mean_of(arm, posed) for arm in found) for found in rates)
        )
        for operator, posed in sorted(tasks.items())
    )


def solve_rates(items: Sequence[Item]) -> dict[str, float]:
    """Share of graded samples that solved it, by task; tasks without a graded sample are left out."""
    return {item.task: item.solved / item.samples for item in items if item.samples}


def _pass_rates(items: Sequence[Item], k: int) -> dict[str, float]:
    """pass@k by task; tasks with fewer graded samples are left out."""
    kept = [item for item in items if item.samples >= k]
    values = pass_at_k([item.samples for item in kept], [item.solved for item in kept], k)
    return {item.task: float(value) for item, value in zip(kept, values, strict=True)}


def _mean_of(rates: dict[str, float], tasks: set[str]) -> float:
    values = [rates[task] for task in sorted(tasks) if task in rates]
    return sum(values) / len(values) if values else math.nan
