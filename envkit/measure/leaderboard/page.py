"""Write the leaderboard as one self-contained HTML page, Markdown and CSV."""

from __future__ import annotations

import base64
import hashlib
import math
from importlib import resources
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from envkit.errors import StoreError
from envkit.measure.leaderboard.data import (
    TWO_CORES,
    Leaderboard,
    RankedRow,
    Section,
    max_task_count,
    results_by_task,
    usd_per_solved,
)
from envkit.measure.leaderboard.published import load_published
from envkit.measure.leaderboard.table import (
    HEAD,
    KINDS,
    TEXT_COLUMNS,
    as_csv,
    kind_of,
    line,
    pass_at_k,
    provenance,
    recipe_differences,
    recipes,
)
from envkit.measure.number_text import NONE, NOT_KNOWN, bounds, dollars, number, percent, points, share
from envkit.measure.report import svg_charts, tables
from envkit.measure.report.data import Difference, TaskResult
from envkit.measure.report.page import curves_of, templates
from envkit.measure.report.summary import summarise_difference
from envkit.measure.report.tables import Table
from envkit.measure.report.text import EXACT, NEAR_EDGE, is_too_narrow, row_warnings
from envkit.measure.stats import LEVEL, POWER, RESAMPLES
from envkit.runtime.store import write_atomic

_NAME: Final = "leaderboard"


def write_leaderboard(board: Leaderboard, folder: Path) -> Path:
    """Write ``leaderboard.html``, ``.md`` and ``.csv`` in place of older ones; returns the page's path.

    Raises:
        StoreError: a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make {folder}: {error.strerror or error}") from error
    for name, content in render(board).items():
        write_atomic(folder / name, content)
    return folder / f"{_NAME}.html"


def render(board: Leaderboard) -> dict[str, bytes]:
    """Render the three files by name. A pure function: equal data gives equal bytes."""
    script = resources.files("envkit.measure.leaderboard").joinpath(f"{_NAME}.js").read_text("utf-8")
    page: dict[str, Any] = {
        "leaderboard": board,
        "title": f"Leaderboard: {', '.join(section.conditions.environment for section in board.sections)}",
        "sections": [_section_data(section, index) for index, section in enumerate(board.sections)],
        "warnings": _warnings(board),
        "method": _method(board),
        "published": load_published(),
        "kinds": KINDS,
        "kind_of": kind_of,
        "script": Markup(script),  # ours; the page's policy runs no other
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    environment = templates("envkit.measure.leaderboard")
    pages = {
        name: environment.get_template(f"{name}.j2").render(page) for name in (f"{_NAME}.html", f"{_NAME}.md")
    }
    return {name: text.encode() for name, text in {**pages, f"{_NAME}.csv": as_csv(board)}.items()}


def _section_data(section: Section, index: int) -> dict[str, Any]:
    """Collect what the templates show of a section."""
    reports = {report.run: report for row in section.rows if (report := row.report).training or report.sft}
    return {
        "id": f"s{index}",
        "environment": section.conditions.environment,
        "lead": _lead(section),
        "baselines": _over_baselines(section),
        "reference": section.reference,
        "head": HEAD,
        "text_columns": TEXT_COLUMNS,
        "rows": [(row, line(row, section.reference)) for row in section.rows],
        "charts": _charts(section, index),
        "selection": section.selection,
        "recipes": [recipes(section), recipe_differences(section)],
        "pass_at_k": pass_at_k(section),
        "break_even": _break_even(section),
        "operators": tables.operators_of(section.operators, [row.name for row in section.contestants]),
        "provenance": provenance(section),
        "matrix": [
            (task, [_matrix_cell(result) for result in results]) for task, results in results_by_task(section)
        ],
        "matrix_head": [row.name for row in section.contestants],
        "learning": [
            (run, curves_of(report, f"s{index}-{number}-"))
            for number, (run, report) in enumerate(reports.items())
        ],
    }


def _lead(section: Section) -> str:
    """Sum up a section in one or two sentences: the best agent and the cheapest."""
    if not section.contestants:
        return "No agent was measured, only controls." if section.rows else "Nothing was measured."
    if not section.complete:
        return "No agent was measured on all tasks."
    first, *others = section.complete
    rates = [share(row.summary.solve_rate.interval) for row in section.complete[:2]]
    if not any(result.solved for result in first.measured.results):
        return "No agent solved anything."
    if not others:
        text = f"{first.name} solves {rates[0]}."
    elif section.lead_p < 1 - LEVEL:
        text = f"{first.name} solves most: {rates[0]}."
    else:
        text = (
            f"{first.name} and {others[0].name} solve most: {rates[0]} and {rates[1]}. The difference "
            f"between them is not significant (p = {number(section.lead_p, 2)})."
        )
        level = [row.name for row in others[1:] if _rate(row) == _rate(others[0])]
        text += f" {', '.join(level)} solve{'s' if len(level) == 1 else ''} as many." if level else ""
    priced = [row for row in section.complete if math.isfinite(usd_per_solved(row))]
    if len(priced) > 1:
        cheapest = min(priced, key=usd_per_solved)
        lowest = usd_per_solved(cheapest)
        unpriced = any(
            row.measured.origin.kind != "script" and math.isnan(row.cost.total_usd)
            for row in section.complete
        )
        among = f"Of the {len(priced)} with a known price, " if unpriced else ""
        text += f" {among}{cheapest.name} is the cheapest per solved task, at {dollars(lowest)}"
        ratio = usd_per_solved(first) / lowest if lowest else math.inf
        text += (
            "."
            if cheapest is first or not math.isfinite(ratio)
            else f"; {first.name} costs {number(ratio, 0 if ratio >= 100 else 1)} times as much."
        )
    return text


def _rate(row: RankedRow) -> float:
    interval = row.summary.solve_rate.interval
    return math.nan if interval is None else interval.estimate


def _over_baselines(section: Section) -> list[str]:
    """Say of each trained row if it beats each baseline, a script that is no control."""
    baselines = [
        row
        for row in section.contestants
        if row.measured.origin.kind == "script" and row.measured.name != section.unsolved_by
    ]
    sentences: list[str] = []
    for trained in (row for row in section.contestants if row.measured.origin.adapter):
        for other in baselines:
            pair = Difference(trained.name, other.name, "")
            interval = summarise_difference(pair, trained.measured, other.measured).interval
            if interval is None or not math.isfinite(interval.low):
                continue
            text = f"{points(interval.estimate)} points {bounds(interval, signed=True)}"
            if interval.low > 0:
                sentences.append(f"{trained.name} beats {other.name}: {text}.")
            elif interval.high < 0:
                sentences.append(f"{trained.name} is worse than {other.name}: {text}.")
            else:
                sentences.append(
                    f"{trained.name} is not shown to beat {other.name}: {text}, which includes zero."
                )
    return sentences


def _matrix_cell(result: TaskResult | None) -> tuple[str, int]:
    """Text and shade of a cell of the task matrix; shades go from 0 to 4, -1 if nothing was measured."""
    if result is None or not result.samples:
        return NONE, -1
    return f"{result.solved}/{result.samples}", round(4 * result.solved / result.samples)


def _break_even(section: Section) -> Table:
    rows = tuple(
        (
            entry.trained,
            entry.other,
            percent(entry.trained_rate),
            percent(entry.other_rate),
            NOT_KNOWN if math.isnan(entry.saves_usd) else dollars(entry.saves_usd),
            _solved_tasks(entry.solved_tasks),
        )
        for entry in section.break_even
    )
    head = (
        *("Trained", "Instead of", "Trained solves %", "Other solves %", "Saves per solved task"),
        "Solved tasks until training is paid",
    )
    return Table("Solved tasks until a trained adapter has paid for its training", head, rows, text_columns=2)


def _solved_tasks(solved_tasks: float) -> str:
    if math.isnan(solved_tasks):
        return NOT_KNOWN
    return f"{math.ceil(solved_tasks):,}" if math.isfinite(solved_tasks) else "never"


def _charts(section: Section, index: int) -> dict[str, Markup]:
    rows = section.contestants
    charts: dict[str, Markup] = {}
    recipes = [
        svg_charts.Bar(
            series,
            recipe.name,
            100 * rate.estimate,
            100 * rate.low,
            100 * rate.high,
            f"{percent(rate.estimate)} %",
        )
        for series, recipe in enumerate(section.recipes)
        if (rate := recipe.mean)
    ]
    if recipes:
        description = "; ".join(f"{bar.name}: {bar.label}" for bar in recipes)
        title = "pass@1 in percent, of rows of one name together"
        charts["recipes"] = svg_charts.bars(f"s{index}-recipes", title, description, recipes)
    spots = [
        svg_charts.Spot(
            series,
            row.name,
            row.cost.per_solved.estimate,
            100 * rate.estimate,
            100 * rate.low,
            100 * rate.high,
            best=not row.dominated,
        )
        for series, row in enumerate(rows)
        if (rate := row.summary.solve_rate.interval)
        and row.cost.per_solved
        and 0 < row.cost.per_solved.estimate < math.inf
    ]
    if spots:
        description = "; ".join(f"{spot.name} {spot.y:.1f} % at {dollars(spot.x)}" for spot in spots)
        title = "Solved tasks in percent, over dollars per solved task"
        charts["pareto"] = svg_charts.scatter(f"s{index}-pareto", title, description, spots, "$")
    lines = [
        svg_charts.Curve(
            series,
            row.name,
            tuple((rate.k, 100 * rate.interval.estimate) for rate in row.curve if rate.interval),
        )
        for series, row in enumerate(rows)
    ]
    lines = [curve for curve in lines if curve.points]
    if any(len(curve.points) > 1 for curve in lines):
        description = "; ".join(
            f"{c.name}: {', '.join(f'{y:.1f} at {x:g}' for x, y in c.points)}" for c in lines
        )
        charts["curves"] = svg_charts.curves(
            f"s{index}-curves", "pass@k in percent, over k", description, lines
        )
    return charts


def _few_sources(row: RankedRow) -> int:
    """Number of sources if an interval of a row is too narrow for their number, else 0."""
    found = (row.summary.solve_rate.interval, row.versus.difference.interval if row.versus else None)
    return max((each.clusters for each in found if each is not None and is_too_narrow(each)), default=0)


def _warnings(board: Leaderboard) -> list[str]:
    warnings: list[str] = []
    for section in board.sections:
        environment = section.conditions.environment
        for row in section.rows:
            warnings += [
                f"{environment}: {text}" for text in row_warnings(row.name, row.measured, row.summary)
            ]
            if short := max_task_count(section.rows) - row.summary.tasks:
                warnings.append(
                    f"{environment}: {row.name} was not measured on {short} of the tasks, so it is ranked "
                    "behind the agents that were."
                )
        if narrow := {row.name: sources for row in section.contestants if (sources := _few_sources(row))}:
            warnings.append(
                f"{environment}: with {max(narrow.values())} sources, intervals are too narrow to rely on: "
                f"those of {', '.join(narrow)}."
            )
        reports = {row.report.run: row.report for row in section.rows}
        machines = {row.report.machine for row in section.rows if row.measured.origin.kind == "local"}
        differing = len({(machine.cpu, machine.cores, machine.card) for machine in machines}) > 1
        if board.machine and differing:
            warnings.append(
                f"{environment}: rows ran on different machines, but all are priced as "
                f"{board.machine}. Make one leaderboard per machine, each with its own --machine."
            )
        for report in reports.values():
            warnings += [f"{environment}, run {report.run}: {text}" for text in report.warnings]
            if report.isolation != "sandbox":
                warnings.append(f"{environment}, run {report.run}: isolation is {report.isolation}.")
    return list(dict.fromkeys(warnings))


def _method(board: Leaderboard) -> list[str]:
    hours = board.machine or (
        f"{TWO_CORES} if they ran on 2 cores without a GPU, and at half of its price on one; rows from other "
        "machines have no price unless --machine names one"
    )
    together = [
        "Rows of one name together: each draw of sources also adds what other seeds might change, "
        "the standard error of the mean over seeds times a draw of Student's t. Rows of the same adapter, or "
        "of a model without one, are averaged."
    ]
    return [
        f"Intervals cover {100 * LEVEL:g} %. They come from {RESAMPLES:,} bootstrap draws of sources: "
        "of what tasks were made from, such as functions, because tasks of one source are not independent. "
        "They say how results would vary with other sources, not with other training seeds.",
        *(together if any(section.recipes for section in board.sections) else ()),
        f"{EXACT} {NEAR_EDGE}",
        "Points against: the difference to the reference row, paired by task. Its p-value comes from a "
        "permutation test that exchanges the two rows within sources, with Holm's "
        "correction for the number of rows compared. The CSV has the difference that is detectable with "
        f"{100 * POWER:g} % power; a smaller one can go unseen.",
        f"Dollars come from the price table of {board.prices.date} ({board.prices.source}). Models behind "
        "an API are priced by tokens, as the provider counted them; if it gave no count, by the most that "
        "the call can have used. Models that ran here are priced by the wall time of their episodes, "
        f"grading included, as hours of {hours}. Training is listed apart, at the same price per hour.",
        "Seconds per episode: a row's wall time divided by its episodes, grading included. Several episodes "
        "run at once, so it says how soon a row is done, not how long one answer takes. Scripts, controls "
        "and recorded outputs have none, because no model answered here.",
        "Dollars per solved counts all tries, failures included. Recorded outputs were graded here like all "
        "others, but their publisher chose the prompt and the sampling. If their tokens were not published, "
        "they are estimated: those of the prompt here and of the answer, counted with another model's "
        "tokenizer.",
        "Voids are episodes lost to broken machinery or to a provider that did not answer. They count as "
        "neither solved nor failed.",
    ]
