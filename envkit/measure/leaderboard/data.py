"""Compute a leaderboard: price, rank and compare the rows of several runs under equal conditions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

from envkit.errors import UnpricedError, UsageError
from envkit.measure.leaderboard.recipes import Recipe, recipes_of
from envkit.measure.report.data import Conditions, Difference, Machine, ReportData, Row, TaskResult
from envkit.measure.report.summary import (
    DifferenceSummary,
    OperatorSummary,
    Rate,
    RowSummary,
    rates_by_operator,
    solve_rates,
    summarise_difference,
    summarise_row,
)
from envkit.measure.stats import Interval, holm, mcnemar_exact, permutation_p, ratio_interval
from envkit.runtime.prices import PriceTable

#: Price table name of the only machine that is recognised from a report: 2 cores and no GPU.
TWO_CORES: Final = "cpu-2-cores"


@dataclass(frozen=True, slots=True)
class Cost:
    """Dollars that a row cost.

    Args:
        total_usd: cost of all episodes, failures and voids included; NaN if unknown.
        per_solved: dollars per solved episode; ``None`` if unknown.
        basis: the tokens or hours that were paid for, or the reason why the cost is unknown.
    """

    total_usd: float
    per_solved: Interval | None
    basis: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row compared with the reference row: row minus reference, paired by task.

    Args:
        difference: paired difference of pass@1.
        p_value: two-sided, from swapping the two rows within sources.
        adjusted: the p-value after Holm's correction for all rows of the section.
        mcnemar: p-value of McNemar's exact test; NaN if a task was tried more than once.
    """

    difference: DifferenceSummary
    p_value: float
    adjusted: float
    mcnemar: float


@dataclass(frozen=True, slots=True)
class RankedRow:
    """One agent on one environment, with its cost and its place on the leaderboard.

    Args:
        name: unique within the section.
        report: report that the row comes from.
        measured: the row as the report has it.
        summary: averages of its results.
        curve: pass@k for k = 1, 2, 4 and so on, up to the number of samples that every task has.
        cost: cost in dollars.
        training_usd: cost of training its adapter, at the machine's hourly price; 0 without an adapter, NaN
            if unknown.
        versus: comparison with the reference row; ``None`` for that row and for controls.
        dominated: True if another row, measured on at least as many tasks, is no worse in solve rate and cost
            and better in one of them.
    """

    name: str
    report: ReportData
    measured: Row
    summary: RowSummary
    curve: tuple[Rate, ...]
    cost: Cost
    training_usd: float
    versus: Comparison | None = None
    dominated: bool = False


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Number of solved tasks after which an adapter's lower cost has paid for its training.

    Args:
        trained: name of the row with the adapter.
        other: name of the row that it replaces.
        trained_rate, other_rate: pass@1 of each, in [0, 1].
        saves_usd: dollars saved per solved task; not positive if the other is cheaper, NaN if unknown.
        solved_tasks: cost of training divided by ``saves_usd``; infinite if the other is cheaper, NaN if the
            saving or the cost of training is unknown.
    """

    trained: str
    other: str
    trained_rate: float
    other_rate: float
    saves_usd: float
    solved_tasks: float


@dataclass(frozen=True, slots=True)
class Section:
    """All rows of one environment.

    Args:
        conditions: conditions that all rows share.
        reference: name of the row that others are compared with; empty for none.
        rows: best first. Rows measured on fewer tasks come after those measured on all, and controls last.
        lead_p: p-value of the paired test of the first row against the second; NaN if fewer than two rows
            were measured on all tasks.
        operators: rates by kind of task.
        break_even: one entry for every trained row and every API row or recorded row.
        unsolved_by: only the tasks that this row never solved count; empty for all tasks.
        recipes: rows of equal names taken together, if that was asked for.
    """

    conditions: Conditions
    reference: str
    rows: tuple[RankedRow, ...]
    lead_p: float
    operators: tuple[OperatorSummary, ...]
    break_even: tuple[BreakEven, ...]
    unsolved_by: str = ""
    recipes: tuple[Recipe, ...] = ()

    @property
    def selection(self) -> str:
        """Say which tasks count, if not all do, and what follows from that choice."""
        if not self.unsolved_by:
            return ""
        only = f"Only tasks that {self.unsolved_by} never solved."
        kinds = {row.measured.origin.kind for row in self.rows if row.measured.name == self.unsolved_by}
        if kinds <= {"script"}:
            return only
        return (
            f"{only} Some of them it failed by chance, so on these tasks every other row looks better beside "
            "it than it is: they do not tell which row is better."
        )

    @property
    def contestants(self) -> tuple[RankedRow, ...]:
        """The rows that are not controls."""
        return tuple(row for row in self.rows if row.measured.expected is None)

    @property
    def complete(self) -> tuple[RankedRow, ...]:
        """The contestants with graded samples on all tasks, as many as any row has."""
        task_count = max_task_count(self.rows)
        return tuple(row for row in self.contestants if row.summary.tasks == task_count > 0)


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """The whole leaderboard.

    Args:
        sections: one per environment, by name.
        prices: the table that all dollars come from.
        machine: price table name of the machine that all local models are priced by. If ``None``, models that
            ran on a `TWO_CORES` machine are priced by that, and others have no price.
    """

    sections: tuple[Section, ...]
    prices: PriceTable
    machine: str | None


def make_leaderboard(
    reports: Sequence[ReportData],
    prices: PriceTable,
    machine: str | None = None,
    against: str | None = None,
    *,
    unsolved_by: str = "",
    seeds: bool = False,
) -> Leaderboard:
    """Rank the rows of several reports.

    Args:
        reports: at least one; those of one environment must have been measured under equal conditions.
        prices: prices of tokens and machine hours.
        machine: price table name of the machine that local models ran on; see `Leaderboard`.
        against: name of the row that all others of its section are compared with. The default is the last row
            with an adapter, or the first row if none has one.
        unsolved_by: count only the tasks that this row never solved.
        seeds: take the training seeds of a recipe together; see `envkit.measure.leaderboard.recipes`.

    Raises:
        UsageError: conditions differ or are unknown, ``against`` names no row or several, ``unsolved_by``
            names no row, or one that solved every task, no name has adapters of several seeds, or the price
            table has no such machine.
    """
    if machine is not None:
        prices.hourly_usd(machine)
    groups: dict[str, list[ReportData]] = {}
    for report in {(report.run, report.environment): report for report in reports}.values():
        groups.setdefault(report.environment, []).append(report)
    if unsolved_by:
        groups = {name: _where_unsolved(group, unsolved_by) for name, group in groups.items()}
    sections = [_section(groups[name], prices, machine, against) for name in sorted(groups)]
    sections = [replace(section, unsolved_by=unsolved_by) for section in sections]
    rows = [row for section in sections for row in section.contestants]
    if against is not None and not any(against in (row.name, row.measured.name) for row in rows):
        names = dict.fromkeys(row.name for row in rows)
        choice = f"choose one of: {', '.join(names)}" if names else "all rows are controls"
        raise UsageError(f"no row is named {against!r}; {choice}")
    if seeds:
        sections = [
            replace(section, recipes=recipes_of([row.measured for row in section.contestants]))
            for section in sections
        ]
        if not any(section.recipes for section in sections):
            raise UsageError(
                "no two rows of one name have different adapters, so there are no seeds to take together; "
                "name rows alike, such as 'trained, seed 0' and 'trained, seed 1'"
            )
    return Leaderboard(tuple(sections), prices, machine)


def _where_unsolved(reports: Sequence[ReportData], name: str) -> list[ReportData]:
    """Keep the results on tasks that no row of this name solved.

    Raises:
        UsageError: there is no such row, or no such task.
    """
    rows = [row for report in reports for row in report.rows]
    searched = [result for row in rows if row.name == name for result in row.results if result.samples]
    solved = {result.task for result in searched if result.solved}
    left = {result.task for result in searched} - solved
    if not left:
        names = dict.fromkeys(row.name for row in rows)
        found = f"{name!r} solved every task" if searched else f"no row is named {name!r}"
        raise UsageError(f"{reports[0].environment}: {found}; choose one of: {', '.join(names)}")
    return [replace(report, rows=tuple(_only(row, left) for row in report.rows)) for report in reports]


def _only(row: Row, tasks: set[str]) -> Row:
    """Keep a row's results on some tasks. Calls without a graded answer cannot be shared out, so they go."""
    origin = replace(row.origin, prompt_tokens=0, completion_tokens=0, cached_tokens=0, seconds=0.0)
    return replace(row, results=tuple(r for r in row.results if r.task in tasks), origin=origin)


def _section(
    reports: Sequence[ReportData], prices: PriceTable, machine: str | None, against: str | None
) -> Section:
    conditions = common_conditions(reports)
    rows: list[RankedRow] = []
    # Seeds of one run share rows, such as the base model; each is listed once.
    reports_by_row = {
        (report.run.partition("/")[0], row): report for report in reversed(reports) for row in report.rows
    }
    listed: list[tuple[ReportData, Row]] = []
    for report in reports:
        for row in report.rows:
            if not row.results or reports_by_row[report.run.partition("/")[0], row] is not report:
                continue  # it has no results, or was listed before
            if any(row.name == other.name for _, other in listed) and _is_sound(row):
                continue  # a control with its expected result is the same in every run
            if any(are_equal_scripts(row, other) for _, other in listed):
                continue  # so is a baseline
            listed.append((report, row))
    name_counts = Counter(row.name for _, row in listed)
    for report, row in listed:
        unique = name_counts[row.name] == 1 or _is_sound(row)
        rows.append(_row(row.name if unique else f"{row.name} · {report.run}", report, row, prices, machine))
    contestants = [row for row in rows if row.measured.expected is None]
    reference = _reference(contestants, against)
    compared = _compared(contestants, reference) if reference else contestants
    # Fewer tasks may be easier ones, so rows with fewer come after the others.
    task_count = max_task_count(rows)
    ranked = sorted(_pareto(compared), key=lambda row: (row.summary.tasks < task_count, -_solves(row)))
    controls = [row for row in rows if row.measured.expected is not None]
    section = Section(
        conditions=conditions,
        reference=reference.name if reference else "",
        rows=(*ranked, *controls),
        lead_p=math.nan,
        operators=rates_by_operator([row.measured for row in ranked]),
        break_even=_break_even(ranked),
    )
    if len(section.complete) < 2:
        return section
    first, second, *_ = section.complete
    return replace(section, lead_p=_p_value(*_paired(first.measured, second.measured)))


def max_task_count(rows: Sequence[RankedRow]) -> int:
    """Number of tasks with graded samples, of the row that has the most."""
    return max((row.summary.tasks for row in rows), default=0)


def are_equal_scripts(one: Row, other: Row) -> bool:
    """True if two rows are of the same script and have the same results, apart from their time."""

    def played(row: Row) -> tuple[str, str, list[tuple[str, int, int]]]:
        return row.origin.kind, row.name, [(r.task, r.samples, r.solved) for r in row.results]

    return one.origin.kind == "script" and played(one) == played(other)


def _is_sound(row: Row) -> bool:
    """True if the row is a control with its expected result."""
    rate = summarise_row(row, (1,)).solve_rate.interval
    return row.expected is not None and rate is not None and rate.estimate == row.expected


def common_conditions(reports: Sequence[ReportData]) -> Conditions:
    """Return the conditions that all reports share.

    Raises:
        UsageError: conditions differ; the message names the fields.
    """
    known: list[tuple[ReportData, Conditions]] = []
    for report in reports:
        if report.conditions is None:
            raise UsageError(
                f"run {report.run} was made by an older version that did not record the conditions of "
                "measurement; run it again"
            )
        known.append((report, report.conditions))
    (first, common), *others = known
    for other, conditions in others:
        pairs = [
            (entry.name, getattr(common, entry.name), getattr(conditions, entry.name))
            for entry in fields(Conditions)
        ]
        differing = [f"{name} ({a!s:.12} and {b!s:.12})" for name, a, b in pairs if a != b and name != "lock"]
        if common.lock != conditions.lock:
            held, others_held = (one.contents or "nothing beside Python" for one in (first, other))
            differing.append(f"what sandboxes held ({held}; and {others_held})")
        if differing:
            raise UsageError(
                f"runs {first.run} and {other.run} differ in {', '.join(differing)} of {common.environment}. "
                "A comparison needs equal conditions: leave one run out, or run it again"
            )
    return common


def _row(name: str, report: ReportData, row: Row, prices: PriceTable, machine: str | None) -> RankedRow:
    samples = min((result.samples for result in row.results if result.samples), default=1)
    ks = [2**power for power in range(samples.bit_length())]
    summary = summarise_row(row, ks)
    used = report.machine
    cost, training_usd = cost_of(row, used, prices, machine), training_cost(row, used, prices, machine)
    return RankedRow(name, report, row, summary, summary.rates, cost, training_usd)


def _hours(row: Row, used: Machine, machine: str | None, prices: PriceTable) -> tuple[str, float]:
    """Return the name of the machine that a row is priced by, and the dollars for each of its hours.

    Raises:
        UnpricedError: no machine is named, and the one that was used is not like `TWO_CORES` or half of it;
            or the named one has no price.
    """
    if named := row.origin.machine or machine:
        return named, prices.hourly_usd(named)
    if used.cores <= 2 and not used.card:
        whole = prices.hourly_usd(TWO_CORES)
        return (TWO_CORES, whole) if used.cores == 2 else (f"half of {TWO_CORES}", whole / 2)
    card = f"{used.card} and " if used.card else ""
    raise UnpricedError(
        f"it ran on {card}{used.cores} cores of {used.cpu}, which have no price; name a machine of the price "
        "table with --machine"
    )


def training_cost(row: Row, used: Machine, prices: PriceTable, machine: str | None = None) -> float:
    """Dollars that training a row's adapter cost; NaN if unknown. Arguments as for `cost_of`."""
    seconds = row.origin.training_seconds
    if seconds == 0:
        return 0.0
    try:
        return seconds / 3600 * _hours(row, used, machine, prices)[1]
    except UnpricedError:
        return math.nan


def cost_of(row: Row, used: Machine, prices: PriceTable, machine: str | None = None) -> Cost:
    """Dollars that a row's episodes cost.

    Args:
        row: the row.
        used: hardware that it ran on.
        prices: prices of tokens and hours.
        machine: the price table's name of the hardware; by default chosen by ``used``.
    """
    origin = row.origin
    if origin.kind == "script":
        return Cost(math.nan, None, "none: a script")
    by_hours = origin.kind == "local" or bool(origin.machine)
    try:
        if by_hours:
            hours, hourly_usd = _hours(row, used, machine, prices)
            costs = [result.seconds * hourly_usd / 3600 for result in row.results]
            # A resumed run got its earlier answers from the journal, in no time.
            paid = origin.seconds * hourly_usd / 3600
            basis = f"hours of {hours} at ${hourly_usd:g}"
        else:
            if not any(result.completion_tokens for result in row.results) and not origin.prompt_tokens:
                return Cost(math.nan, None, "its tokens were not recorded")
            priced_as = origin.price or origin.model
            price = prices.of(priced_as)
            costs = [
                price.cost_usd(result.prompt_tokens, result.completion_tokens, result.cached_tokens)
                for result in row.results
            ]
            paid = price.cost_usd(origin.prompt_tokens, origin.completion_tokens, origin.cached_tokens)
            basis = f"tokens of {priced_as} at ${price.input:g} and ${price.output:g} per million"
            if origin.tokenizer:
                basis = f"estimated: {basis}, counted with the tokenizer of {origin.tokenizer}"
    except UnpricedError as error:
        return Cost(math.nan, None, str(error))
    # The cost of calls without a graded answer is spread evenly over the tasks.
    ungraded = max(paid - sum(costs), 0.0) / len(costs)
    costs = [cost + ungraded for cost in costs]
    clusters = [result.source for result in row.results]
    return Cost(sum(costs), ratio_interval(costs, [result.solved for result in row.results], clusters), basis)


def _reference(rows: Sequence[RankedRow], against: str | None) -> RankedRow | None:
    named = [row for row in rows if against == row.name] or [
        row for row in rows if against == row.measured.name
    ]
    if len(named) > 1:
        names = ", ".join(row.name for row in named)
        raise UsageError(f"several rows are named {against!r}; choose one of: {names}")
    trained = [row for row in rows if row.measured.origin.adapter]
    return next(iter([*named, *trained[-1:], *rows]), None)


def _compared(rows: Sequence[RankedRow], reference: RankedRow) -> list[RankedRow]:
    others = [row for row in rows if row is not reference]
    tested = [(row, *_test(row.measured, reference.measured)) for row in others]
    adjusted = holm([p_value for _, _, p_value, _ in tested])
    comparisons = {
        row.name: Comparison(difference, p_value, adjusted_p, mcnemar)
        for (row, difference, p_value, mcnemar), adjusted_p in zip(tested, adjusted, strict=True)
    }
    return [replace(row, versus=comparisons.get(row.name)) for row in rows]


def _test(row: Row, reference: Row) -> tuple[DifferenceSummary, float, float]:
    """Return the paired difference, its p-value, and McNemar's p-value (NaN with several tries per task)."""
    difference = summarise_difference(Difference(row.name, reference.name, ""), row, reference)
    a, b, sources = _paired(row, reference)
    once = all(result.samples <= 1 for result in (*row.results, *reference.results))
    only_a = sum(x > y for x, y in zip(a, b, strict=True))
    only_b = sum(x < y for x, y in zip(a, b, strict=True))
    exact = mcnemar_exact(only_a, only_b) if once and a else math.nan
    return difference, _p_value(a, b, sources), exact


def _paired(row: Row, reference: Row) -> tuple[list[float], list[float], list[str]]:
    """Solve rates of both rows on their common tasks, and the tasks' sources."""
    first, second = solve_rates(row.results), solve_rates(reference.results)
    source = {result.task: result.source for result in row.results}
    common = sorted(first.keys() & second.keys())
    return [first[task] for task in common], [second[task] for task in common], [source[t] for t in common]


def _p_value(a: list[float], b: list[float], sources: list[str]) -> float:
    return permutation_p(a, b, sources) if a else 1.0


def _pareto(rows: Sequence[RankedRow]) -> list[RankedRow]:
    """Mark the rows that another row dominates; see `RankedRow.dominated`."""

    def dominated(row: RankedRow) -> bool:
        cost, solves = usd_per_solved(row), _solves(row)
        return any(
            usd_per_solved(other) <= cost
            and _solves(other) >= solves
            and (usd_per_solved(other), _solves(other)) != (cost, solves)
            for other in rows
            if math.isfinite(usd_per_solved(other)) and other.summary.tasks >= row.summary.tasks
        )

    return [replace(row, dominated=dominated(row)) for row in rows]


def _break_even(rows: Sequence[RankedRow]) -> tuple[BreakEven, ...]:
    entries: list[BreakEven] = []
    for trained in rows:
        if not trained.measured.origin.adapter:
            continue
        for other in rows:
            if other.measured.origin.kind in ("live", "recorded") and math.isfinite(usd_per_solved(other)):
                cost = trained.cost.per_solved.estimate if trained.cost.per_solved else math.nan
                saves = usd_per_solved(other) - cost
                solved_tasks = math.inf if saves <= 0 else trained.training_usd / saves
                rates = _solves(trained), _solves(other)
                entries.append(BreakEven(trained.name, other.name, *rates, saves, solved_tasks))
    return tuple(entries)


def usd_per_solved(row: RankedRow) -> float:
    """Dollars per solved episode; infinite if nothing is solved or the cost is unknown."""
    return row.cost.per_solved.estimate if row.cost.per_solved else math.inf


def _solves(row: RankedRow) -> float:
    interval = row.summary.solve_rate.interval
    return interval.estimate if interval else -1.0


def results_by_task(section: Section) -> list[tuple[str, list[TaskResult | None]]]:
    """Every task of a section with each contestant's result; ``None`` if it has none."""
    by_row = [{result.task: result for result in row.measured.results} for row in section.contestants]
    tasks = dict.fromkeys(result.task for row in section.contestants for result in row.measured.results)
    return [(task, [results.get(task) for results in by_row]) for task in tasks]
