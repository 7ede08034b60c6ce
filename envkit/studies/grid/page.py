"""The page of a study: verdict, plot, numbers and what they were measured with."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from envkit.measure.number_text import number, share
from envkit.measure.report.page import templates
from envkit.measure.report.summary import summarise_row
from envkit.measure.report.svg_charts import bars, svg_file
from envkit.measure.report.tables import Table
from envkit.measure.stats import RESAMPLES
from envkit.runtime.store import write_atomic
from envkit.studies.grid.arms import ARMS, BASE, SPECIALISTS
from envkit.studies.grid.budget import StudyBudget, load_budget
from envkit.studies.grid.catalogue import Study
from envkit.studies.grid.finding import UNDECIDED, StudyFinding, in_points
from envkit.studies.grid.grid import Grid
from envkit.studies.grid.measurements import DISTANCE, FRONTIER, MULTIPLEX, ON, PLAYED, environment_of


def judge(study: Study, grid: Grid, seeds: int) -> StudyFinding:
    """Judge a study's claim. Unless all is measured, with the planned number of seeds, nothing is decided.

    Args:
        study, grid: what is judged, and by which cells.
        seeds: number that the budget plans. With any other number, the seeds could have been chosen by their
            verdict.

    Raises:
        UsageError: an arm is not measured at all, or cells were made or measured under different conditions.
    """
    for arm in study.arms:
        grid.require_same_settings(arm)
    for part in study.parts:
        if part in PLAYED:
            grid.require_same_conditions(study.arms, part)
    found = study.judge(grid)
    reasons = [*_reasons(study, grid, seeds)]
    tables = (
        *found.tables,
        *(_scripts_table(study, grid, part) for part in study.parts if grid.others(part)),
    )
    verdict = UNDECIDED if reasons else found.verdict
    return replace(found, verdict=verdict, sentences=(*reasons, *found.sentences), tables=tables)


def _reasons(study: Study, grid: Grid, seeds: int) -> Iterator[str]:
    """Yield the reasons why nothing is decided, whatever the numbers are."""
    if missing := [f"{cell.name} ({part})" for cell, part in study.missing(grid)]:
        yield f"Not decided: not all is measured yet. Missing: {', '.join(missing)}."
    if any(ARMS[arm].has_seeds for arm in study.arms):
        if grid.seeds != seeds:
            yield f"Not decided: there are {grid.seeds} of {seeds} seeds, the number that was planned."
        elif seeds == 1:
            yield "Not decided: one seed says nothing of others."
    for cell in (cell for arm in study.arms for cell in grid.cells(arm)):
        made = cell.made
        if made is not None and made.steps < made.planned:
            yield f"Not decided: {cell.name} ended after {made.steps} of {made.planned} steps."


def _scripts_table(study: Study, grid: Grid, part: str) -> Table:
    """Solve rates of scripts, without a model, and how much more the arms solve."""
    where = environment_of(part)
    arms = [arm for arm in study.arms if grid.rows(arm, part)]
    return Table(
        f"Chance and search: scripts on the same tasks{f' of {where}' if where else ''}",
        ("Script", "Solves", *(f"{arm} minus it" for arm in arms)),
        tuple(
            (
                name,
                share(summarise_row(row, (1,)).solve_rate.interval),
                *(in_points(grid.difference_from(row, arm, part)) for arm in arms),
            )
            for name, row in grid.others(part).items()
            if row.origin.kind == "script"
        ),
    )


def write_page(
    study: Study, finding: StudyFinding, grid: Grid, budget: StudyBudget, typed: str, folder: Path
) -> Path:
    """Write a study's page and its plot to a folder, in place of older ones; returns the page's path.

    Args:
        study, finding, grid: what was judged, and by which cells.
        budget: the sizes, with the model that was given, if one was.
        typed: the name or the file of the budget, for the command that the page shows.
        folder: where they are written.
    """
    plot = folder / f"{study.name}.svg"
    write_atomic(plot, _plot(study, finding).encode())
    text = (
        templates("envkit.studies.grid")
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
            setup=_setup(study, budget, grid),
            command=_command(study, budget, typed, grid.seeds),
            versions=_versions(study, grid),
        )
    )
    page = folder / f"{study.name}.md"
    write_atomic(page, text.encode())
    return page


def _command(study: Study, budget: StudyBudget, typed: str, seeds: int) -> str:
    words = ["envkit", "study", "claim", study.name, "--budget", typed]
    if budget.model != load_budget(typed).model:
        words += ["--model", budget.model]
    if FRONTIER in study.parts:
        words += ["--benchmark", "FORMAT:PATH"]
    return shlex.join([*words, "--seeds", str(seeds)])


def _plot(study: Study, finding: StudyFinding) -> str:
    """The bars as a file of their own, in the colours of the reports."""
    described = "; ".join(f"{bar.name} {bar.label}" for bar in finding.bars)
    return svg_file(bars("study", finding.axis, described, finding.bars))


def _setup(study: Study, budget: StudyBudget, grid: Grid) -> str:
    """Say what was trained and measured."""
    said = [f"The base is {Path(budget.model).name}."]
    if any(part in ON.values() for part in study.parts):
        [special, *_] = SPECIALISTS.values()
        settings, chars = budget.config_of(special), budget.max_task_chars_of(special)
        said.append(
            f"For each environment: {settings.sft_examples} known answers, then {settings.max_steps} steps "
            f"of {settings.groups_per_step} x {settings.num_generations} episodes, on tasks of at most "
            f"{chars} characters. Rank {settings.lora_r}."
        )
    elif any(ARMS[arm].has_seeds for arm in study.arms):
        settings = budget.config_of(ARMS[BASE])
        said.append(
            f"Training: {settings.sft_examples or 'no'} known answers, then RL, {settings.max_steps} steps "
            f"of {settings.groups_per_step} x {settings.num_generations} episodes of {budget.environment}, "
            f"on tasks of at most {budget.max_task_chars} characters. Arms of SFT learn from known answers "
            "alone."
        )
    for part in study.parts:
        if part in PLAYED:
            said.append(_played(part, budget, grid))
    if any(part in PLAYED for part in study.parts):
        said.append(f"Intervals resample {number(RESAMPLES, 0)} times the sources that tasks come from.")
    return " ".join(said)


def _played(part: str, budget: StudyBudget, grid: Grid) -> str:
    """Say on which tasks a part was measured."""
    play, environment = budget.play_of(part), environment_of(part)
    [base] = grid.cells(BASE)
    found = base.measured(part)
    tasks = play.tasks if found is None else len(found.row.results)
    kind = "given" if part == FRONTIER else "test" if play.split == "test" else "held-out"
    where = f" of {environment}" if environment else ""
    digest = f" ({found.conditions.tasks[:12]})" if part == FRONTIER and found is not None else ""
    samples = f"{number(play.samples, 0)} sample{'s' * (play.samples > 1)} each"
    return (
        f"Measured on {tasks} {kind} tasks{where}{digest}, {samples}, at temperature {play.temperature:g}, "
        f"with at most {play.config.max_completion_length} tokens a turn."
    )


def _versions(study: Study, grid: Grid) -> str:
    """Say with which versions of envkit the cells were made."""
    found: dict[str, list[str]] = {}
    for cell in (cell for arm in study.arms for cell in grid.cells(arm)):
        played = [grid.measured(cell, part) for part in study.parts if part in PLAYED]
        scripts = [cell.others(part) for part in study.parts if part in PLAYED]
        parts = [cell.made, cell.prompt, *played, *scripts]
        parts += [cell.distance] if DISTANCE in study.parts else []
        parts += [cell.multiplexed] if MULTIPLEX in study.parts else []
        for commit in {part.commit for part in parts if part is not None}:
            found.setdefault(commit, []).append(cell.name)
    if len(found) == 1:
        return f"Version: {min(found)}."
    listed = (f"{commit} ({', '.join(cells)})" for commit, cells in sorted(found.items()))
    return f"Versions: {'; '.join(listed)}."
