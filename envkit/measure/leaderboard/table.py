"""Format leaderboard rows as table cells for the page and Markdown, and as CSV with all numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from envkit.measure.leaderboard.data import Leaderboard, RankedRow, Section
from envkit.measure.leaderboard.recipes import differences_of
from envkit.measure.number_text import MINUS, NONE, NOT_KNOWN, bounds, dollars, number, percent, points
from envkit.measure.report.tables import HELD_OUT_FAILED, Table, held_out_failed
from envkit.measure.stats import LEVEL, Interval
from envkit.measure.visible_text import visible

#: Texts of the "Answers" column by `kind_of` a row.
KINDS: Final = {
    "local": "ran here",
    "live": "asked live",
    "recorded": "recorded outputs",
    "script": "script",
    "control": "control",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table.

    Args:
        text: text of the cell.
        value: sort key; ``None`` for text cells and unknown values.
        interval: confidence interval as text.
    """

    text: str
    value: float | None = None
    interval: str = ""


HEAD: Final = (
    *("Agent", "Answers", "Solved %", HELD_OUT_FAILED, "Points against", "p, corrected", "$ per solved"),
    *("$ spent", "Training $", "s per episode", "Tasks", "Tries", "Voids"),
)
#: Number of text columns, from the left.
TEXT_COLUMNS: Final = 2


def kind_of(row: RankedRow) -> str:
    """`Origin.kind`, or "control" for a row that does not compete."""
    return row.measured.origin.kind if row.measured.expected is None else "control"


def line(row: RankedRow, reference: str) -> tuple[Cell, ...]:
    """Format a row as cells under `HEAD`; ``reference`` is the name of the reference row."""
    summary, cost = row.summary, row.cost
    played = summary.samples + summary.voids
    answered = row.measured.origin.kind in ("local", "live")  # else it is only grading time
    seconds = summary.seconds / played if played and answered else math.nan
    tried = sorted({result.samples + result.voids for result in row.measured.results})
    tries = str(tried[0]) if len(tried) == 1 else f"{tried[0]}{NONE}{tried[-1]}"
    return (
        Cell(row.name),
        Cell(KINDS[kind_of(row)]),
        _solves(row),
        Cell(
            held_out_failed(summary),
            summary.held_out_failed / summary.held_out if summary.held_out else None,
        ),
        *_compared(row, reference),
        _per_solved(row),
        Cell(_estimated(row, dollars(cost.total_usd)), _finite(cost.total_usd)),
        _training(row),
        Cell(number(seconds, 2), _finite(seconds)),
        Cell(number(summary.tasks, 0), float(summary.tasks)),
        Cell(tries, float(tried[0])),
        Cell(number(summary.voids, 0), float(summary.voids)),
    )


def _solves(row: RankedRow) -> Cell:
    rate = row.summary.solve_rate.interval
    return Cell(NONE) if rate is None else Cell(percent(rate.estimate), rate.estimate, bounds(rate))


def _compared(row: RankedRow, reference: str) -> tuple[Cell, Cell]:
    if row.versus is None or row.versus.difference.interval is None:
        return Cell("reference" if row.name == reference else NONE), Cell(NONE)
    interval, adjusted = row.versus.difference.interval, row.versus.adjusted
    return (
        Cell(points(interval.estimate), interval.estimate, bounds(interval, signed=True)),
        Cell("< 0.001" if adjusted < 0.001 else number(adjusted, 3), adjusted),
    )


def _per_solved(row: RankedRow) -> Cell:
    usd = row.cost.per_solved
    if usd is None:
        return Cell(NONE)
    if math.isinf(usd.estimate):
        return Cell(dollars(usd.estimate))
    high = dollars(usd.high) if math.isfinite(usd.high) else "\N{INFINITY}"
    return Cell(_estimated(row, dollars(usd.estimate)), usd.estimate, f"[{dollars(usd.low)}, {high}]")


def _estimated(row: RankedRow, amount: str) -> str:
    """Mark an amount whose tokens were not counted by the provider."""
    return f"{amount} (estimated)" if row.measured.origin.tokenizer else amount


def _training(row: RankedRow) -> Cell:
    if math.isnan(row.training_usd):
        return Cell(NOT_KNOWN)
    return Cell(dollars(row.training_usd), row.training_usd) if row.training_usd else Cell(NONE)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def pass_at_k(section: Section) -> Table:
    """pass@k of every contestant for each known k; no rows if only k = 1 is known."""
    ks = (1, *_ks([section]))
    rows = tuple((row.name, *map(_percent, _rates(row, ks))) for row in section.contestants)
    head = ("Agent", *(f"pass@{k} %" for k in ks))
    return Table("The chance that one of k tries solves a task", head, rows if len(ks) > 1 else ())


def _percent(rate: Interval | None) -> str:
    return NONE if rate is None else f"{percent(rate.estimate)} {bounds(rate)}"


def _ks(sections: Sequence[Section]) -> tuple[int, ...]:
    """Every k above 1 for which a contestant's pass@k is known."""
    rows = [row for section in sections for row in section.contestants]
    return tuple(sorted({rate.k for row in rows for rate in row.curve if rate.k > 1 and rate.interval}))


def _rates(row: RankedRow, ks: Sequence[int]) -> list[Interval | None]:
    by_k = {rate.k: rate.interval for rate in row.curve}
    return [by_k.get(k) for k in ks]


def recipes(section: Section) -> Table:
    """pass@1 of every recipe over its seeds; no rows if they were not taken together."""
    rows = tuple(
        (
            recipe.name,
            number(recipe.seeds, 0),
            _percent(recipe.mean),
            ", ".join(map(percent, recipe.each)) or NONE,
            number(len(recipe.tasks), 0),
        )
        for recipe in section.recipes
    )
    head = ("Agent", "Models", "Solved %", "Each", "Tasks")
    return Table(
        "Rows of one name together, as if trained alike: intervals for other sources and training seeds",
        head,
        rows,
    )


def recipe_differences(section: Section) -> Table:
    """Paired differences of recipes of which one has several seeds."""
    rows = tuple(
        (
            f"{entry.recipe} {MINUS} {entry.against}",
            NONE if entry.interval is None else points(entry.interval.estimate),
            bounds(entry.interval, signed=True),
            "yes" if entry.interval is not None and entry.interval.excludes_zero else "no",
        )
        for entry in differences_of(section.recipes)
    )
    head = ("Comparison", "Points", f"{100 * LEVEL:g} % interval", "Excludes zero")
    return Table("Their paired differences of pass@1, in percentage points", head, rows)


def provenance(section: Section) -> Table:
    """Run, model, sampling, cost and command of every row."""
    head = (
        *("Agent", "Run", "Model", "Adapter", "Sampling", "Cost", "Isolation", "Certificate", "Commit"),
        "Command",
    )
    rows = tuple(_provenance(row) for row in section.rows)
    return Table("Where each row comes from", head, rows, text_columns=len(head))


def _provenance(row: RankedRow) -> tuple[str, ...]:
    report, origin = row.report, row.measured.origin
    temperature = "its own" if math.isnan(origin.temperature) else f"{origin.temperature:g}"
    length = f", {origin.max_completion_length} tokens" if origin.max_completion_length else ""
    stops = "".join(f", up to {text!r}" for text in origin.stop_strings)
    context = f", asked with up to {origin.max_context_length}" if origin.max_context_length else ""
    return (
        row.name,
        report.run,
        f"{origin.model} {origin.digest[:12]}".strip() or NONE,
        origin.adapter[:12] or NONE,
        NONE
        if origin.kind in ("script", "recorded")
        else f"temperature {temperature}{length}{stops}{context}",
        row.cost.basis,
        f"{report.isolation}, {report.sandbox}",
        report.certificate if report.certificate.startswith("none") else report.certificate[:40] or NONE,
        report.commit or NONE,
        report.command,
    )


def as_csv(board: Leaderboard) -> str:
    """Format the leaderboard as CSV: one line per row, numbers unformatted."""
    text, ks = io.StringIO(), _ks(board.sections)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        (
            *("environment", "agent", "answers", "tasks", "samples", "solved", "voids"),
            *("held_out", "held_out_failed"),
            *("pass_at_1", "pass_at_1_low", "pass_at_1_high", "clusters"),
            *(f"pass_at_{k}{end}" for k in ks for end in ("", "_low", "_high")),
            *("difference", "difference_low", "difference_high", "detectable"),
            *("p_value", "p_holm", "p_mcnemar"),
            *("usd_per_solved", "usd_per_solved_low", "usd_per_solved_high", "usd_total", "usd_training"),
            *("prompt_tokens", "cached_tokens", "completion_tokens", "seconds"),
            *("conditions", *(name.lower() for name in provenance(board.sections[0]).head[1:])),
        )
    )
    for section in board.sections:
        for row, origin in zip(section.rows, provenance(section).rows, strict=True):
            writer.writerow([_safe(value) for value in _values(section, row, ks, origin)])
    return text.getvalue()


def _values(
    section: Section, row: RankedRow, ks: Sequence[int], origin: tuple[str, ...]
) -> list[str | float | None]:
    rate, versus, cost, items = row.summary.solve_rate.interval, row.versus, row.cost, row.measured.results
    difference = versus.difference.interval if versus else None
    per = cost.per_solved
    return [
        section.conditions.environment,
        row.name,
        row.measured.origin.kind,
        row.summary.tasks,
        row.summary.samples,
        sum(result.solved for result in items),
        row.summary.voids,
        row.summary.held_out,
        row.summary.held_out_failed,
        *((rate.estimate, rate.low, rate.high, rate.clusters) if rate else (None,) * 4),
        *(end for at_k in _rates(row, ks) for end in _ends(at_k)),
        *_ends(difference),
        versus.difference.detectable if versus else None,
        *((versus.p_value, versus.adjusted, versus.mcnemar) if versus else (None,) * 3),
        *_ends(per),
        cost.total_usd,
        row.training_usd,
        sum(result.prompt_tokens for result in items),
        sum(result.cached_tokens for result in items),
        sum(result.completion_tokens for result in items),
        row.summary.seconds,
        section.conditions.digest,
        *origin[1:],
    ]


def _ends(interval: Interval | None) -> tuple[float | None, ...]:
    return (interval.estimate, interval.low, interval.high) if interval else (None,) * 3


def _safe(value: str | float | None) -> str:
    """Format a CSV cell: no spreadsheet formula, no invisible characters; empty if unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        return repr(value)
    value = visible(value)
    return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
