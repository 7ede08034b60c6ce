"""The page of a study: verdict, plot, numbers and what they were measured with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

from markupsafe import Markup

from envkit.benchmark.number_text import number, share
from envkit.benchmark.report import templates
from envkit.benchmark.stats import RESAMPLES
from envkit.benchmark.summary import summarise_row
from envkit.benchmark.svg_charts import bars
from envkit.benchmark.tables import Table
from envkit.store import write_atomic
from envkit.studies.founding.arms import ARMS, BASE
from envkit.studies.founding.budget import Budget
from envkit.studies.founding.catalogue import Study
from envkit.studies.founding.cells import MANY, PLAYED, SOLVE, Grid
from envkit.studies.founding.finding import UNDECIDED, Finding


def judge(study: Study, grid: Grid) -> Finding:
    """Judge a study's claim. With one seed, or while something is missing, nothing is decided.

    Raises:
        UsageError: an arm is not measured at all, or cells were measured under different conditions.
    """
    for part in study.parts:
        if part in PLAYED:
            grid.require_same_conditions(study.arms, part)
    found = study.judge(grid)
    reasons = [*_reasons(study, grid)]
    tables = (*found.tables, *([_chance_table(grid)] if SOLVE in study.parts and grid.chance else []))
    verdict = UNDECIDED if reasons else found.verdict
    return replace(found, verdict=verdict, sentences=(*reasons, *found.sentences), tables=tables)


def _reasons(study: Study, grid: Grid) -> Iterator[str]:
    """Why nothing is decided, whatever the numbers are."""
    if missing := [f"{cell.name} ({part})" for cell, part in study.missing(grid)]:
        yield f"Not decided: not all is measured yet. Missing: {', '.join(missing)}."
    if grid.seeds == 1 and any(ARMS[arm].has_seeds for arm in study.arms):
        yield "Not decided: one seed says nothing of others."
    for cell in (cell for arm in study.arms for cell in grid.cells(arm)):
        made = cell.made
        if made is not None and made.steps < made.planned:
            yield f"Not decided: {cell.name} ended after {made.steps} of {made.planned} steps."


def _chance_table(grid: Grid) -> Table:
    """What scripts solve, without a model."""
    return Table(
        "Chance and search: scripts on the same tasks",
        ("Script", "Solves"),
        tuple(
            (name, share(summarise_row(row, (1,)).solve_rate.interval)) for name, row in grid.chance.items()
        ),
    )


def write_page(study: Study, finding: Finding, grid: Grid, budget: Budget, folder: Path) -> Path:
    """Write a study's page and its plot to a folder, in place of older ones; returns the page's path."""
    plot = folder / f"{study.name}.svg"
    write_atomic(plot, _plot(study, finding).encode())
    text = (
        templates()
        .get_template("study.md.j2")
        .render(
            name=study.name,
            verdict=finding.verdict,
            claim=study.claim,
            axis=finding.axis,
            plot=plot.name,
            sentences=finding.sentences,
            tables=finding.tables,
            published=study.published,
            setup=_setup(study, budget),
            command=f"envkit study {study.name} --budget {folder.name} --seeds {grid.seeds}",
            versions=_versions(study, grid),
        )
    )
    page = folder / f"{study.name}.md"
    write_atomic(page, text.encode())
    return page


def _plot(study: Study, finding: Finding) -> str:
    """The bars as a file of their own, in the colours of the reports."""
    described = "; ".join(f"{bar.name} {bar.label}" for bar in finding.bars)
    chart = bars("study", finding.axis, described, finding.bars)
    style = resources.files("envkit.benchmark").joinpath("chart.css").read_text("utf-8")
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" style="background: '
        'var(--paper)" '
    )
    opened, closed = chart.removeprefix("<svg ").split(">", 1)
    return f"{head}{opened}><style>\n{style}</style>{closed}\n"


def _setup(study: Study, budget: Budget) -> str:
    """Say what was trained and measured."""
    said = [f"The base is {Path(budget.model).name}."]
    if any(ARMS[arm].has_seeds for arm in study.arms):
        settings = budget.config_of(ARMS[BASE])
        said.append(
            f"RL begins from it, without a warm start: {settings.max_steps} steps of "
            f"{settings.groups_per_step} x {settings.num_generations} episodes of {budget.environment}, on "
            f"tasks of at most {budget.max_task_chars} characters."
        )
    sizes = {SOLVE: (budget.tasks, budget.samples), MANY: (budget.many_tasks, budget.many_samples)}
    for part in study.parts:
        if part in PLAYED:
            tasks, samples = sizes[part]
            said.append(f"Measured on {tasks} {budget.split} tasks, {samples} samples each.")
    if any(part in PLAYED for part in study.parts):
        said.append(f"Intervals resample {number(RESAMPLES, 0)} times the sources that tasks come from.")
    return " ".join(said)


def _versions(study: Study, grid: Grid) -> str:
    """Say with which versions of envkit the cells were made."""
    found: set[str] = set()
    for cell in (cell for arm in study.arms for cell in grid.cells(arm)):
        played = [cell.measured(part) for part in study.parts if part in PLAYED]
        parts = (cell.made, *played, cell.distance, cell.multiplexed, cell.chance)
        found |= {part.commit for part in parts if part is not None}
    return f"Version: {', '.join(sorted(found))}."
