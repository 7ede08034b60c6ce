"""Run the studies of envkit's claims: train and measure what is missing, then judge."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from envkit.api.bench_runs import LIMITS
from envkit.api.common import RUNS, absolute_if_path
from envkit.api.results import StudyResult, StudyState
from envkit.api.rich_display import DisplayChoice, open_display
from envkit.errors import StoreError, UsageError

if TYPE_CHECKING:
    from envkit.benchmark.report_data import Conditions, ReportData, Row
    from envkit.display import Display
    from envkit.sandbox import SandboxBackend
    from envkit.studies.founding.budget import Budget
    from envkit.studies.founding.catalogue import Study
    from envkit.studies.founding.cells import CellFolder, Grid

#: Default folder of the studies' grids.
STUDIES_ROOT = RUNS / "studies"
_CELLS, _BUDGET = "cells", "budget.json"
#: Limits of episodes that scripts have.
_LIMITS_OF_SCRIPTS: Final = ("max_turns",)


def study(
    name: str,
    *,
    budget: str = "cpu",
    model: Path | str | None = None,
    seeds: int | None = None,
    measure: bool = True,
    root: Path | str = STUDIES_ROOT,
    sandbox: SandboxBackend | str = "auto",
    display: DisplayChoice = "rich",
) -> StudyResult:
    """Measure one of the claims that envkit was founded on, and judge it: HELD, FAILED or UNDECIDED.

    Studies share a grid: each arm is trained once with each seed. A study that is run again continues where
    it was, and trains nothing twice.

    Args:
        name: a name of `list_studies`.
        budget: ``"smoke"`` (shows that everything runs), ``"cpu"``, or a TOML file of sizes.
        model: the base of all arms; by default the budget's.
        seeds: train this many seeds of each arm; by default the budget's. More can be added later.
        measure: train and measure what is missing; else judge what there is.
        root: folder of the grids; each budget has one in it.
        sandbox: a backend or its registered name.
        display: ``"rich"``, ``"quiet"`` or a display of your own.

    Raises:
        UsageError: bad input, found before any long work; cells were measured under different conditions;
            or, without ``measure``, an arm is not measured.
        StoreError: the grid has other sizes, a file of it is damaged, or another process works on it.
        EnvkitError: a run failed; see `envkit.errors`.
    """
    from envkit.models import require_training
    from envkit.store import locked_folder
    from envkit.studies.founding.catalogue import STUDIES
    from envkit.studies.founding.cells import PLAYED
    from envkit.studies.founding.page import judge, write_page

    if name not in STUDIES:
        raise UsageError(f"there is no study {name!r}; expected one of: {', '.join(STUDIES)}")
    chosen = STUDIES[name]
    sizes, grid = _grid(budget, model, seeds, Path(root))
    folder = grid.root.parent
    if measure:
        require_training()
        _require_settings(chosen, sizes)
        folder.mkdir(parents=True, exist_ok=True)
        with locked_folder(folder), open_display(display) as progress:
            _keep(folder, sizes)
            missing = [*chosen.missing(grid)]
            if any(part in PLAYED for _, part in missing):
                _require_current(chosen, grid, sizes)
            for number, (cell, part) in enumerate(missing, 1):
                progress.say(f"{number} of {len(missing)}: {cell.name}, {part}")
                if stopped := _measure(cell, part, sizes, sandbox, progress):
                    return StudyResult(name, None, None, stopped)
    found = judge(chosen, grid)
    return StudyResult(name, found, write_page(chosen, found, grid, sizes, folder), None)


def list_studies(budget: str = "cpu", *, root: Path | str = STUDIES_ROOT) -> tuple[StudyState, ...]:
    """List the studies, and how much of each is measured.

    Args:
        budget, root: as for `study`.
    """
    from envkit.studies.founding.catalogue import STUDIES

    _, grid = _grid(budget, None, None, Path(root))
    return tuple(
        StudyState(each.name, each.claim, len([*each.needs(grid)]), len([*each.missing(grid)]))
        for each in STUDIES.values()
    )


def _grid(budget: str, model: Path | str | None, seeds: int | None, root: Path) -> tuple[Budget, Grid]:
    """Return the sizes and the cells of a budget.

    Raises:
        StoreError: cells of other sizes are there.
    """
    from envkit.files import read_json_object
    from envkit.plain import encode
    from envkit.studies.founding.budget import load_budget, read_budget
    from envkit.studies.founding.cells import Grid

    sizes = load_budget(budget)
    folder = root / Path(budget).stem
    kept = folder / _BUDGET
    began = None
    if kept.exists():
        try:
            began = read_budget(read_json_object(kept), str(kept))
        except (OSError, ValueError) as error:
            raise StoreError(f"{kept} cannot be read ({error})") from error
    if model is not None:
        sizes = replace(sizes, model=absolute_if_path(model))
    elif began is not None:
        sizes = replace(sizes, model=began.model)
    sizes = replace(sizes, seeds=seeds or sizes.seeds)
    if began is not None:
        ours, theirs = (cast("dict[str, object]", encode(replace(one, seeds=1))) for one in (sizes, began))
        if differing := [key for key, value in ours.items() if theirs[key] != value]:
            raise StoreError(
                f"{folder} was begun with another {differing[0]} ({theirs[differing[0]]}; now "
                f"{ours[differing[0]]}); name another folder with --root"
            )
    return sizes, Grid(folder / _CELLS, sizes.seeds)


def _require_settings(study: Study, sizes: Budget) -> None:
    """Raise if an arm's settings are wrong, or no environment is named so, before anything is trained."""
    from envkit import registry
    from envkit.studies.founding.arms import ARMS

    registry.environment(sizes.environment)
    for arm in study.arms:
        sizes.config_of(ARMS[arm])


def _require_current(study: Study, grid: Grid, sizes: Budget) -> None:
    """Raise if cells were played under different conditions, or by other code than is here now.

    Raises:
        UsageError: what is played from now on could not be compared with them.
    """
    from envkit import registry
    from envkit.studies.founding.cells import PLAYED
    from envkit.studies.provenance import code_digest

    for part in PLAYED:
        if part not in study.parts:
            continue
        grid.require_same_conditions(study.arms, part)
        code = code_digest(registry.environment(sizes.environment))
        for cell in (cell for arm in study.arms for cell in grid.cells(arm)):
            measured = cell.measured(part)
            if measured is not None and measured.conditions.code != code:
                raise UsageError(
                    f"the code of {sizes.environment} has changed since {cell.name} was measured with "
                    f"{measured.commit}; go on with that version, or {cell.again(part)}, likewise for all "
                    "cells"
                )


def _keep(folder: Path, sizes: Budget) -> None:
    """Write down the sizes of a grid."""
    from envkit.plain import encode
    from envkit.store import write_atomic

    write_atomic(folder / _BUDGET, (json.dumps(encode(sizes), indent=1) + "\n").encode())


def _measure(
    cell: CellFolder, part: str, sizes: Budget, sandbox: SandboxBackend | str, display: Display
) -> signal.Signals | None:
    """Measure a part of a cell, after making its adapter if it has none; returns what stopped it."""
    from envkit.studies.founding.cells import CHANCE, DISTANCE, MULTIPLEX

    if part == MULTIPLEX:
        _multiplex(cell, sizes, display)
        return None
    if part == CHANCE:
        return _play_scripts(cell, sizes, sandbox, display)
    if cell.arm.has_adapter and cell.made is None and (stopped := _make(cell, sizes, sandbox, display)):
        return stopped
    if part == DISTANCE:
        _measure_distance(cell, sizes, sandbox, display)
        return None
    return _play(cell, part, sizes, sandbox, display)


def _make(
    cell: CellFolder, sizes: Budget, sandbox: SandboxBackend | str, display: Display
) -> signal.Signals | None:
    """Train a cell's adapter, or compute it; goes on with a run that was stopped."""
    from envkit.api.steering import steer
    from envkit.api.supporting import support
    from envkit.api.training import resume_train, train
    from envkit.models import weights_digest
    from envkit.studies.controls import control_of
    from envkit.studies.founding.arms import COMPUTED
    from envkit.studies.founding.cells import Made
    from envkit.studies.provenance import commit
    from envkit.training.checkpoint import step_of

    settings, folder = sizes.settings_of(cell.arm), cell.work / "training"
    if cell.arm.kind == COMPUTED:
        adapter = cell.work / "vector"
        if not adapter.exists():
            # A search that was stopped begins anew: it stops by what it finds, so it has no end to go on to.
            played = support(
                sizes.environment,
                config=settings,
                max_task_chars=sizes.max_task_chars,
                sandbox=sandbox,
                root=folder,
                display=display,
            )
            if played.stopped_by:
                return played.stopped_by
            steer(played.run, adapter, display=display)
    else:
        began = _runs(folder)
        result = (
            resume_train(began[-1], sandbox=sandbox, trackers=(), display=display)
            if began
            else train(
                sizes.environment,
                config={**settings, "seed": cell.seed},
                max_task_chars=sizes.max_task_chars,
                evaluate=False,
                sandbox=sandbox,
                trackers=(),
                root=folder,
                display=display,
                command=f"envkit study: {cell.name}",
            )
        )
        if result.stopped_by:
            return result.stopped_by
        adapter = result.adapter
    config = sizes.config_of(cell.arm)
    cell.write_made(
        Made(
            str(adapter.resolve().relative_to(cell.path.resolve())),
            weights_digest(adapter),
            control_of(cell.name, adapter),
            step_of(adapter),
            config.max_steps if cell.arm.has_seeds else 0,
            commit(),
        )
    )
    return None


def _runs(folder: Path) -> list[Path]:
    """Run folders that a stopped study has left, oldest first."""
    return sorted(path.parent for path in folder.glob("*/manifest.json"))


def _adapter(cell: CellFolder) -> Path | None:
    """The folder of a cell's adapter; ``None`` if it has none.

    Raises:
        StoreError: it is gone.
    """
    made = cell.made
    if made is None:
        return None
    adapter = cell.path / made.adapter
    if not adapter.exists():
        raise StoreError(
            f"{adapter} is gone, and something of {cell.name} is not measured yet; delete the folder "
            f"{cell.path} to train and measure it again"
        )
    return adapter


def _play(
    cell: CellFolder, part: str, sizes: Budget, sandbox: SandboxBackend | str, display: Display
) -> signal.Signals | None:
    """Play a cell's held-out episodes."""
    from envkit.studies.founding.cells import MANY, Measured

    report, stopped = _evaluated(
        cell.work / part,
        sizes,
        sandbox,
        display,
        f"envkit study: {cell.name}, {part}",
        tasks=sizes.many_tasks if part == MANY else sizes.tasks,
        samples=sizes.many_samples if part == MANY else sizes.samples,
        model=sizes.model,
        adapter=_adapter(cell),
        shots=cell.arm.shots,
    )
    if report is None:
        return stopped
    assert report.conditions is not None  # only reports of earlier versions lack them
    [row] = [row for row in report.rows if row.expected is None]
    row = replace(row, name=cell.name, description=cell.arm.meaning)
    cell.write_measured(part, Measured(row, report.conditions, report.machine, report.commit))
    return None


def _play_scripts(
    cell: CellFolder, sizes: Budget, sandbox: SandboxBackend | str, display: Display
) -> signal.Signals | None:
    """Let the environment's baselines play the tasks of ``"solve"``."""
    from envkit import registry
    from envkit.studies.founding.cells import CHANCE, Chance
    from envkit.studies.provenance import commit

    rows: list[Row] = []
    conditions: Conditions | None = None
    for baseline in registry.environment(sizes.environment).baselines:
        report, stopped = _evaluated(
            cell.work / CHANCE / baseline.name,
            sizes,
            sandbox,
            display,
            f"envkit study: {baseline.name}",
            tasks=sizes.tasks,
            samples=sizes.samples if baseline.is_random else 1,
            agent=baseline.name,
        )
        if report is None:
            return stopped
        [row] = [row for row in report.rows if row.name == baseline.name]
        rows.append(row)
        conditions = report.conditions
    cell.write_chance(Chance(tuple(rows), conditions, commit()))
    return None


def _evaluated(
    folder: Path,
    sizes: Budget,
    sandbox: SandboxBackend | str,
    display: Display,
    command: str,
    *,
    tasks: int,
    samples: int,
    agent: str = "model",
    **model: Any,
) -> tuple[ReportData | None, signal.Signals | None]:
    """Evaluate an agent, or go on with an evaluation that was stopped.

    Returns:
        Its report, or what stopped it.
    """
    from envkit.api.measuring import evaluate, resume_bench
    from envkit.benchmark.report import load_reports

    names = LIMITS if agent == "model" else _LIMITS_OF_SCRIPTS
    limits: dict[str, Any] = {name: sizes.training[name] for name in names if name in sizes.training}
    if began := _runs(folder):
        result = resume_bench(began[-1], sandbox=sandbox, display=display)
    else:
        result = evaluate(
            sizes.environment,
            agent=agent,
            limit=tasks,
            split=sizes.split,
            max_task_chars=sizes.max_task_chars,
            samples=samples,
            sandbox=sandbox,
            root=folder,
            display=display,
            command=command,
            **limits,
            **model,
        )
    if result.stopped_by:
        return None, result.stopped_by
    [report] = load_reports(result.run)
    return report, None


def _measure_distance(
    cell: CellFolder, sizes: Budget, sandbox: SandboxBackend | str, display: Display
) -> None:
    """Measure how far a cell's adapter has moved from its base."""
    from envkit.api.forgotten import forgetting
    from envkit.studies.founding.cells import Distance
    from envkit.studies.provenance import commit

    adapter, made = _adapter(cell), cell.made
    assert adapter is not None
    assert made is not None
    found = forgetting(
        adapter,
        environment=sizes.environment,
        model=sizes.model,
        config=sizes.config_of(cell.arm),
        max_task_chars=sizes.max_task_chars,
        limit=sizes.passages,
        sandbox=sandbox,
        display=display,
    )
    if found.task is None:
        raise UsageError(f"all episodes of {cell.name} are void; read why in a run of `envkit eval`")
    text = found.text
    cell.write_distance(Distance(made.digest, text.sources, text.rises, found.task.kl, commit()))


def _multiplex(cell: CellFolder, sizes: Budget, display: Display) -> None:
    """Measure what decoding with many adapters costs."""
    from envkit.models import resolve
    from envkit.studies.founding.cells import Multiplexed
    from envkit.studies.founding.multiplexing import RANK, counts_of
    from envkit.studies.machine import machine, resolve_dtype, use_threads
    from envkit.studies.multiplexing import ManyAdapters
    from envkit.studies.provenance import commit
    from envkit.training.config import TrainConfig

    threads = use_threads()
    ref, dtype = resolve(sizes.model, display), resolve_dtype(TrainConfig(), display.say).dtype
    together, one_by_one = counts_of(sizes.rows)
    most = max(together)
    speeds = ManyAdapters(ref, dtype, most, RANK, sizes.rows, sizes.ticks).speeds(
        together, one_by_one, sizes.rounds
    )
    exact = ManyAdapters(ref, "float32", most, RANK, sizes.rows, sizes.ticks).largest_difference(most)
    found = {way: tuple(each) for way, each in speeds.items()}
    cell.write_multiplexed(Multiplexed(RANK, sizes.rows, found, exact, machine(threads, dtype), commit()))
