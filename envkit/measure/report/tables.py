"""Tables of a report as cells of text, for HTML and Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envkit.measure.number_text import MINUS, NONE, bounds, number, percent, points
from envkit.measure.report.data import Machine, Phase, ReportData, Scalar, TrainPoint
from envkit.measure.report.summary import DifferenceSummary, OperatorSummary, RowSummary, Summary
from envkit.measure.stats import LEVEL

#: Title of the column of `held_out_failed`.
HELD_OUT_FAILED = "Fail held-out check %"
_TRAINING_ROWS = 12
_INTERVAL = f"{100 * LEVEL:g} % interval"


@dataclass(frozen=True, slots=True)
class Table:
    """A captioned table of text.

    Args:
        caption: caption of the table.
        head: column titles.
        rows: cells; each row is as long as ``head``.
        text_columns: number of text columns, from the left; the others hold numbers and are right-aligned.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1


def results(data: ReportData, summary: Summary) -> Table:
    """Solve rates, one line per row, controls last."""
    rates = [cell for k in data.ks for cell in (f"pass@{k} %", _INTERVAL)]
    order = sorted(summary.rows, key=lambda row: row.control)
    has_held_out = any(row.held_out for row in summary.rows)
    held_out = (HELD_OUT_FAILED,) if has_held_out else ()
    return Table(
        "Solve rates on the held-out tasks",
        ("Agent", "Tasks", *rates, *held_out, "Tokens per solve", "Seconds", "Voids"),
        tuple(_result_row(row, has_held_out=has_held_out) for row in order),
    )


def held_out_failed(row: RowSummary) -> str:
    """The share of solved samples that fail a held-out check, in percent."""
    return percent(row.held_out_failed / row.held_out) if row.held_out else NONE


def _result_row(row: RowSummary, *, has_held_out: bool) -> tuple[str, ...]:
    name = f"{row.name} (control)" if row.control else row.name
    cells: list[str] = []
    for rate in row.rates:
        if rate.interval is None:
            cells += [NONE, NONE]
            continue
        partial = "" if rate.tasks == row.tasks else f" ({rate.tasks} tasks)"
        cells += [percent(rate.interval.estimate), bounds(rate.interval) + partial]
    if has_held_out:
        cells.append(held_out_failed(row))
    cost = (number(row.tokens_per_solve, 0), number(row.seconds, 0))
    return (name, number(row.tasks, 0), *cells, *cost, number(row.voids, 0))


def rewards(data: ReportData, summary: Summary) -> Table:
    """Mean reward of each row, by source. Without rows if rewards only repeat what is solved."""
    sources = list(dict.fromkeys(source for row in summary.rows for source in row.rewards))
    order = sorted(summary.rows, key=lambda row: row.control)
    paid = [
        (math.fsum(item.rewards.values()), item.solved)
        for row in data.rows
        for item in row.results
        if item.rewards
    ]
    says_more = len(sources) > 1 or any(
        not math.isclose(reward, solved, abs_tol=1e-9) for reward, solved in paid
    )
    return Table(
        "Mean reward of an episode, and what paid it",
        ("Agent", "Reward", *sources),
        tuple(_reward_row(row, sources) for row in order if row.rewards) if says_more else (),
    )


def _reward_row(row: RowSummary, sources: Sequence[str]) -> tuple[str, ...]:
    name = f"{row.name} (control)" if row.control else row.name
    values = (math.fsum(row.rewards.values()), *(row.rewards.get(source, math.nan) for source in sources))
    return (name, *(number(value, 3) for value in values))


def differences(summary: Summary) -> Table:
    """Paired differences of pass@1 in percentage points, one line each."""
    head = ("Points", _INTERVAL, "Excludes zero", "Sources", "Tasks", "Smallest detectable")
    return Table(
        "Paired differences of pass@1, in percentage points",
        ("Comparison", "Measures", *head),
        tuple(_difference_row(entry) for entry in summary.differences),
        text_columns=2,
    )


def _difference_row(entry: DifferenceSummary) -> tuple[str, ...]:
    name = f"{entry.pair.row} {MINUS} {entry.pair.against}"
    interval = entry.interval
    if interval is None:
        return (name, entry.pair.meaning, NONE, NONE, NONE, NONE, "0", NONE)
    return (
        name,
        entry.pair.meaning,
        points(interval.estimate),
        bounds(interval, signed=True),
        "yes" if interval.excludes_zero else "no",
        number(interval.clusters, 0),
        number(entry.tasks, 0),
        percent(entry.detectable),
    )


def operators(data: ReportData, summary: Summary) -> Table:
    """Rates by kind of task, one column per contestant."""
    return operators_of(summary.operators, [row.name for row in data.rows if row.expected is None], data.ks)


def operators_of(
    summaries: Sequence[OperatorSummary], names: Sequence[str], ks: Sequence[int] = (1,)
) -> Table:
    """Rates by kind of task, one column per contestant (``names``) and k, in the order of the rates."""
    rows = tuple(
        (entry.operator, number(entry.tasks, 0), *(percent(rate) for rates in entry.rates for rate in rates))
        for entry in summaries
    )
    columns = [f"{name} %" if k == 1 else f"{name} pass@{k} %" for k in ks for name in names]
    measures = " and ".join(f"pass@{k}" for k in ks)
    return Table(f"{measures} by kind of task, in percent", ("Kind of task", "Tasks", *columns), rows)


def training(data: ReportData) -> Table:
    """The training curve in at most a dozen rows, each the mean over a span of steps."""
    span = max(1, math.ceil(len(data.training) / _TRAINING_ROWS))
    spans = [data.training[i : i + span] for i in range(0, len(data.training), span)]
    head = ("Steps", "Mean reward", "Mixed groups %", "Loss", "Tokens per second")
    rows = tuple(_span_row(part) for part in spans)
    return Table("Reinforcement learning, means over spans of steps", head, rows)


def _span_row(span: Sequence[TrainPoint]) -> tuple[str, ...]:
    first, last = span[0].step, span[-1].step
    return (
        str(first) if first == last else f"{first}{NONE}{last}",
        number(_mean([point.reward for point in span]), 3),
        percent(_mean([point.mixed_share for point in span])),
        number(_mean([point.loss for point in span]), 4),
        number(_mean([point.tokens_per_s for point in span]), 0),
    )


def phases(data: ReportData) -> Table:
    """Time, tokens and memory of each phase."""
    total = Phase(
        "Total",
        sum(phase.seconds for phase in data.phases),
        sum(phase.tokens for phase in data.phases),
        max((phase.peak_memory_bytes for phase in data.phases), default=0),
    )
    rows = tuple(
        (
            phase.name,
            number(phase.seconds, 0),
            percent(phase.seconds / total.seconds) if total.seconds else NONE,
            number(phase.tokens, 0),
            number(phase.peak_memory_bytes / 1e9, 1) if phase.peak_memory_bytes else NONE,
        )
        for phase in (*data.phases, total)
    )
    return Table(
        "Time, tokens and memory", ("Phase", "Seconds", "Share %", "Tokens", "Peak memory so far GB"), rows
    )


def facts(data: ReportData) -> Table:
    """Run, model, environment and machine."""
    rows = (
        ("Run", data.run),
        ("Created", data.created),
        ("Environment", data.environment),
        ("Isolation", f"{data.isolation}, {data.sandbox}"),
        *([("In the sandbox", data.contents)] if data.contents else []),
        ("Model", data.model),
        ("Model digest", data.model_digest),
        ("Held-out tasks digest", data.heldout_digest),
        ("Machine", _described(data.machine)),
    )
    return Table("What was run", ("Fact", "Value"), rows, text_columns=2)


def _described(machine: Machine) -> str:
    card = f", {machine.card}" if machine.card else ""
    return f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads, {machine.dtype}{card}"


def config(settings: Mapping[str, Scalar]) -> Table:
    """Every setting of a run, by name."""
    rows = tuple((key, _setting(settings[key])) for key in sorted(settings))
    return Table("Settings", ("Setting", "Value"), rows, text_columns=2)


def _setting(value: Scalar) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
