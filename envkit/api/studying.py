"""Run the studies of envkit's claims: train and measure what is missing, then judge."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from envkit.api.common import RUNS, absolute_if_path, command_of
from envkit.api.results import StudyResult, StudyState
from envkit.api.rich_display import DisplayChoice, open_display
from envkit.errors import StoreError, UsageError

if TYPE_CHECKING:
    from envkit.display import Display
    from envkit.sandbox import SandboxBackend
    from envkit.studies.founding.budget import Budget
    from envkit.studies.founding.catalogue import Study
    from envkit.studies.founding.cells import CellFolder, Grid

#: Default folder of the studies' grids.
STUDIES_ROOT = RUNS / "studies"
_CELLS, _BUDGET = "cells", "budget.json"
#: Limits of episodes that the untouched model has too.
_LIMITS: Final = ("max_turns", "max_completion_length", "stop_strings", "max_context_length")


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
    command: str | None = None,
) -> StudyResult:
    """Measure one of the claims that envkit was founded on, and judge it: HELD, FAILED or UNDECIDED.

    Studies share a grid: each arm is trained once with each seed. A study that is run again continues where
    it was, and trains nothing twice.

    Args:
        name: a name of `list_studies`.
        budget: ``"smoke"`` (shows that everything runs), ``"cpu"``, ``"gpu"``, or a TOML file of sizes.
        model: the base of all arms; by default the budget's.
        seeds: train this many seeds of each arm; by default the budget's. More can be added later.
        measure: train and measure what is missing; else judge what there is.
        root: folder of the grids; each budget has one in it.
        sandbox: a backend or its registered name.
        display: ``"rich"``, ``"quiet"`` or a display of your own.
        command: command to show on the page; by default this call.

    Raises:
        UsageError: bad input, found before any long work; or, without ``measure``, an arm is not measured.
        StoreError: the grid has other sizes, or a file of it is damaged.
        EnvkitError: a run failed; see `envkit.errors`.
    """
    from envkit.models import require_training
    from envkit.studies.founding.catalogue import STUDIES
    from envkit.studies.founding.page import judge, write_page

    if name not in STUDIES:
        raise UsageError(f"there is no study {name!r}; expected one of: {', '.join(STUDIES)}")
    chosen = STUDIES[name]
    sizes, grid = _grid(budget, model, seeds, Path(root))
    if measure:
        require_training()
        _keep(grid.root.parent, sizes)
        with open_display(display) as progress:
            missing = [*_missing(chosen, grid)]
            for number, (cell, part) in enumerate(missing, 1):
                progress.say(f"{number} of {len(missing)}: {cell.name}, {part}")
                if stopped := _measure(cell, part, sizes, sandbox, progress):
                    return StudyResult(name, None, None, stopped)
    found = judge(chosen, grid)
    folder = grid.root.parent
    typed = command or command_of("study", repr(name))
    return StudyResult(name, found, write_page(chosen, found, grid, sizes, folder, typed), None)


def list_studies(budget: str = "cpu", *, root: Path | str = STUDIES_ROOT) -> tuple[StudyState, ...]:
    """List the studies, and how much of each is measured.

    Args:
        budget, root: as for `study`.
    """
    from envkit.studies.founding.catalogue import STUDIES

    _, grid = _grid(budget, None, None, Path(root))
    return tuple(
        StudyState(each.name, each.claim, len([*_parts(each, grid)]), len([*_missing(each, grid)]))
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


def _keep(folder: Path, sizes: Budget) -> None:
    """Write down the sizes of a grid."""
    from envkit.plain import encode
    from envkit.store import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / _BUDGET, (json.dumps(encode(sizes), indent=1) + "\n").encode())


def _parts(study: Study, grid: Grid) -> Iterator[tuple[CellFolder, str]]:
    """All that a study needs: cells, seed by seed, and what is measured of each."""
    from envkit.studies.founding.cells import DISTANCE

    cells = [cell for arm in study.arms for cell in grid.cells(arm)]
    for cell in sorted(cells, key=lambda cell: cell.seed):
        for part in study.parts:
            if part != DISTANCE or cell.arm.has_adapter:
                yield cell, part


def _missing(study: Study, grid: Grid) -> Iterator[tuple[CellFolder, str]]:
    """What of it is not measured yet."""
    return ((cell, part) for cell, part in _parts(study, grid) if not cell.has(part))


def _measure(
    cell: CellFolder, part: str, sizes: Budget, sandbox: SandboxBackend | str, display: Display
) -> signal.Signals | None:
    """Measure a part of a cell, after making its adapter if it has none; returns what stopped it."""
    from envkit.studies.founding.cells import DISTANCE, MULTIPLEX

    if part == MULTIPLEX:
        _multiplex(cell, sizes, display)
        return None
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
    from envkit.studies.controls import control_of
    from envkit.studies.founding.cells import Made
    from envkit.studies.provenance import commit

    settings, folder = sizes.settings_of(cell.arm), cell.work / "training"
    if cell.arm.kind == "computed":
        adapter = cell.work / "vector"
        if not adapter.exists():
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
    cell.write_made(
        Made(
            str(adapter.relative_to(cell.path)),
            control_of(cell.name, adapter),
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
            f"{adapter} is gone, and something of {cell.name} is not measured yet; delete "
            f"{cell.path / 'training.json'} to train it again"
        )
    return adapter


def _play(
    cell: CellFolder, part: str, sizes: Budget, sandbox: SandboxBackend | str, display: Display
) -> signal.Signals | None:
    """Play a cell's held-out episodes."""
    from envkit.api.measuring import evaluate, resume_bench
    from envkit.benchmark.report import load_reports
    from envkit.studies.founding.cells import MANY, Measured

    folder, training = cell.work / part, sizes.training
    tasks, samples = (sizes.many_tasks, sizes.many_samples) if part == MANY else (sizes.tasks, sizes.samples)
    limits = {name: training[name] for name in _LIMITS if name in training}
    if began := _runs(folder):
        result = resume_bench(began[-1], sandbox=sandbox, display=display)
    else:
        result = evaluate(
            sizes.environment,
            model=sizes.model,
            adapter=_adapter(cell),
            limit=tasks,
            split=sizes.split,
            max_task_chars=sizes.max_task_chars,
            samples=samples,
            shots=cell.arm.shots,
            sandbox=sandbox,
            root=folder,
            display=display,
            command=f"envkit study: {cell.name}, {part}",
            **cast("dict[str, Any]", limits),
        )
    if result.stopped_by:
        return result.stopped_by
    [report] = load_reports(result.run)
    [row] = [row for row in report.rows if row.expected is None]
    if report.conditions is None:
        raise StoreError(f"{result.run} does not say under which conditions it was measured")
    cell.write_measured(
        part,
        Measured(
            replace(row, name=cell.name, description=cell.arm.meaning),
            report.conditions,
            report.machine,
            report.commit,
        ),
    )
    return None


def _measure_distance(
    cell: CellFolder, sizes: Budget, sandbox: SandboxBackend | str, display: Display
) -> None:
    """Measure how far a cell's adapter has moved from its base."""
    from envkit.api.forgotten import forgetting
    from envkit.studies.founding.cells import Distance
    from envkit.studies.provenance import commit

    adapter = _adapter(cell)
    assert adapter is not None
    found = forgetting(
        adapter,
        environment=sizes.environment,
        model=sizes.model,
        max_task_chars=sizes.max_task_chars,
        limit=sizes.passages,
        sandbox=sandbox,
        display=display,
    )
    if found.task is None:
        raise UsageError(f"all episodes of {cell.name} are void; read why in a run of `envkit eval`")
    cell.write_distance(Distance(found.text.sources, found.text.rises, found.task.kl, commit()))


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
