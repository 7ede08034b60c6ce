"""The page of a study: verdict, plot, numbers and what they were measured with."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from markupsafe import Markup

from envkit.benchmark.number_text import number
from envkit.benchmark.report import templates
from envkit.benchmark.stats import RESAMPLES
from envkit.benchmark.svg_charts import bars
from envkit.store import write_atomic
from envkit.studies.founding.budget import Budget
from envkit.studies.founding.catalogue import Study
from envkit.studies.founding.cells import PLAYED, Grid
from envkit.studies.founding.finding import Finding


def judge(study: Study, grid: Grid) -> Finding:
    """Judge a study's claim.

    Raises:
        UsageError: an arm is not measured at all, or cells were measured under different conditions.
    """
    for part in study.parts:
        if part in PLAYED:
            grid.require_same_conditions(study.arms, part)
    return study.judge(grid)


def write_page(
    study: Study, finding: Finding, grid: Grid, budget: Budget, folder: Path, command: str
) -> Path:
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
            setup=_setup(budget),
            resamples=number(RESAMPLES, 0),
            command=command,
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


def _setup(budget: Budget) -> str:
    """Say what was trained and measured."""
    training = budget.training
    return (
        f"{budget.model} on {budget.environment}: {training.get('max_steps')} steps of "
        f"{training.get('groups_per_step')} x {training.get('num_generations')} episodes from the base, "
        f"without a warm start, on tasks of at most {budget.max_task_chars} characters; {budget.tasks} "
        f"{budget.split} tasks, {budget.samples} samples each."
    )


def _versions(study: Study, grid: Grid) -> str:
    """Say with which versions of envkit the cells were made."""
    found: set[str] = set()
    for cell in (cell for arm in study.arms for cell in grid.cells(arm)):
        played = [cell.measured(part) for part in study.parts if part in PLAYED]
        parts = (cell.made, *played, cell.distance, cell.multiplexed)
        found |= {part.commit for part in parts if part is not None}
    return f"Version: {', '.join(sorted(found))}."
