"""Run the studies of envkit's claims: train and measure what is missing, then judge."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from envkit.errors import ConfigError, StoreError, UsageError
from envkit.runs.common import RUNS, absolute_if_path
from envkit.runs.rich_display import DisplayChoice, open_display

if TYPE_CHECKING:
    from envkit.sandbox import SandboxBackend
    from envkit.studies.grid.budget import StudyBudget
    from envkit.studies.grid.catalogue import Study
    from envkit.studies.grid.finding import StudyFinding
    from envkit.studies.grid.grid import Grid

#: Default folder of the studies' grids.
STUDIES_ROOT = RUNS / "studies"
_CELLS, _BUDGET = "cells", "budget.json"


@dataclass(frozen=True, slots=True)
class StudyResult:
    """The result of `envkit.study`.

    Args:
        name: of the study.
        found: verdict and numbers; ``None`` if it was stopped before all was measured.
        page: path of the page of Markdown; ``None`` likewise.
        stopped_by: signal that stopped it; the same call continues it.
    """

    name: str
    found: StudyFinding | None
    page: Path | None
    stopped_by: signal.Signals | None


@dataclass(frozen=True, slots=True)
class StudyState:
    """Progress of a study.

    Args:
        name: of the study.
        claim: what it measures.
        parts: how many measurements it needs, of all arms and seeds.
        missing: how many of them are not there yet.
    """

    name: str
    claim: str
    parts: int
    missing: int


def study(
    name: str,
    *,
    budget: str = "cpu",
    model: Path | str | None = None,
    seeds: int | None = None,
    measure: bool = True,
    benchmark: Path | str = "",
    root: Path | str = STUDIES_ROOT,
    sandbox: SandboxBackend | str = "auto",
    display: DisplayChoice = "rich",
) -> StudyResult:
    """Test a claim about LoRA or RL on small models, and judge it: HELD, FAILED or UNDECIDED.

    Studies share a grid: each arm is trained once with each seed. A study that is run again continues where
    it was, and trains nothing twice.

    Args:
        name: a name of `list_studies`.
        budget: ``"smoke"`` (shows that everything runs), ``"cpu"``, ``"gpu"``, or a TOML file of sizes.
        model: the base of all arms; by default the budget's.
        seeds: train this many seeds of each arm; by default the budget's. More can be added later.
        measure: train and measure what is missing; else judge what there is.
        benchmark: ``FORMAT:PATH`` of tasks that other models have answered, for the study ``frontier`` alone:
            the output of ``benchmarks/debugbench_half.py``, for example.
        root: folder of the grids; each budget has one in it.
        sandbox: a backend or its registered name.
        display: ``"rich"``, ``"quiet"`` or a display of your own.

    Raises:
        UsageError: bad input, found before any long work; cells were measured under different conditions;
            or, without ``measure``, an arm is not measured.
        StoreError: the grid has other sizes, or a file of it is damaged.
        EnvkitError: a run failed; see `envkit.errors`.
    """
    from envkit.models import require_training, resolve
    from envkit.studies.grid.budget import load_budget
    from envkit.studies.grid.catalogue import STUDIES
    from envkit.studies.grid.measure_cells import CellMeasurer
    from envkit.studies.grid.measurements import FRONTIER, PLAYED
    from envkit.studies.grid.page import judge, write_page
    from envkit.studies.grid.queue import measure_missing

    if name not in STUDIES:
        raise UsageError(f"there is no study {name!r}; expected one of: {', '.join(STUDIES)}")
    chosen = STUDIES[name]
    if benchmark and FRONTIER not in chosen.parts:
        raise UsageError(f"study {name} plays the environment's own tasks; leave the benchmark out")
    sizes, grid = _grid(budget, model, seeds, Path(root))
    folder = grid.root.parent
    if measure:
        require_training()
        _require_settings(chosen, grid, sizes)
        missing = [*chosen.missing(grid)]
        if missing and FRONTIER in chosen.parts and not benchmark:
            raise UsageError(
                f"study {name} plays tasks that other models have answered; name their file, for example "
                "with --benchmark debugbench:PATH"
            )
        if any(part in PLAYED for _, part in missing):
            _require_current(chosen, grid, sizes)
        with open_display(display) as progress:
            if missing:
                resolve(sizes.model, progress)  # before its name is kept
            folder.mkdir(parents=True, exist_ok=True)
            _keep(folder, sizes)
            measurer = CellMeasurer(grid, sizes, str(benchmark), sandbox, progress)
            if stopped := measure_missing(grid, missing, measurer.measure, progress):
                return StudyResult(name, None, None, stopped)
    found = judge(chosen, grid, load_budget(budget).seeds)
    return StudyResult(name, found, write_page(chosen, found, grid, sizes, budget, folder), None)


def list_studies(budget: str = "cpu", *, root: Path | str = STUDIES_ROOT) -> tuple[StudyState, ...]:
    """List the studies, and how much of each is measured.

    Args:
        budget, root: as for `study`.
    """
    from envkit.studies.grid.catalogue import STUDIES

    _, grid = _grid(budget, None, None, Path(root))
    return tuple(
        StudyState(each.name, each.claim, len([*each.needs(grid)]), len([*each.missing(grid)]))
        for each in STUDIES.values()
    )


def _grid(budget: str, model: Path | str | None, seeds: int | None, root: Path) -> tuple[StudyBudget, Grid]:
    """Return the sizes and the cells of a budget.

    Raises:
        StoreError: cells of other sizes are there.
    """
    from envkit.runtime.files import read_json_object
    from envkit.runtime.plain import encode
    from envkit.studies.grid.budget import load_budget, read_budget
    from envkit.studies.grid.grid import Grid

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
        # No cell can be of a table that the budget lacked when the grid was begun: such a table may be added.
        if differing := [key for key, value in ours.items() if theirs[key] not in (None, value)]:
            raise StoreError(
                f"{folder} was begun with another {differing[0]} ({theirs[differing[0]]}; now "
                f"{ours[differing[0]]}); name another folder with --root"
            )
    return sizes, Grid(folder / _CELLS, sizes.seeds)


def _require_settings(study: Study, grid: Grid, sizes: StudyBudget) -> None:
    """Raise if an arm's settings are wrong, or not those of its cells, before anything is trained."""
    from envkit.env import registry
    from envkit.studies.grid.arms import ARMS, PROMPTED, RL_ARM, WARM
    from envkit.studies.grid.make_arms import settings_of
    from envkit.studies.grid.measurements import PLAYED

    for environment in (
        sizes.environment,
        *(sizes.play_of(p).environment for p in study.parts if p in PLAYED),
    ):
        registry.environment(environment)
    for arm in study.arms:
        sizes.config_of(ARMS[arm])
        grid.require_settings(arm, settings_of(sizes, ARMS[arm]))
        if ARMS[arm].kind == PROMPTED:
            _ = sizes.prompt_sizes
        if ARMS[arm].kind == WARM and not sizes.config_of(ARMS[RL_ARM]).sft_examples:
            raise ConfigError(
                f"study {study.name} compares RL with its warm start, and training.sft_examples is 0; set it "
                "in the budget"
            )


def _require_current(study: Study, grid: Grid, sizes: StudyBudget) -> None:
    """Raise if cells were played under different conditions, or by other code than is here now.

    Raises:
        UsageError: what is played from now on could not be compared with them.
    """
    from envkit.env import registry
    from envkit.runs.folder.provenance import code_digest
    from envkit.studies.grid.measurements import PLAYED

    for part in PLAYED:
        if part not in study.parts:
            continue
        grid.require_same_conditions(study.arms, part)
        environment = sizes.play_of(part).environment
        code = code_digest(registry.environment(environment))
        for cell in (cell for arm in study.arms for cell in grid.cells(arm)):
            measured = grid.measured(cell, part)
            if measured is not None and measured.conditions.code != code:
                raise UsageError(
                    f"the code of {environment} has changed since {cell.name} was measured with "
                    f"{measured.commit}; go on with that version, or {cell.again(part)}, likewise for all "
                    "cells"
                )


def _keep(folder: Path, sizes: StudyBudget) -> None:
    """Write down the sizes of a grid."""
    from envkit.runtime.plain import encode
    from envkit.runtime.store import write_atomic

    write_atomic(folder / _BUDGET, (json.dumps(encode(sizes), indent=1) + "\n").encode())
