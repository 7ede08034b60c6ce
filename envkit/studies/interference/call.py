"""Measure whether one adapter for several environments costs any of them."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envkit.errors import UsageError
from envkit.measure.spec import DEFAULT_SAMPLES
from envkit.runs.bench_runs import adapter_folders, play_bench, start_bench, trained_limits
from envkit.runs.common import RUNS, command_of, isolated_backend
from envkit.runs.rich_display import DisplayChoice, open_display

if TYPE_CHECKING:
    from envkit.runtime.display import Display
    from envkit.runtime.store import RunFolder
    from envkit.sandbox import SandboxBackend
    from envkit.studies.interference.table import Interference

#: Ways to merge that are measured by default; ``"cat"``, the exact sum, is one more.
DEFAULT_MERGES = ("linear", "ties", "dare_linear")


@dataclass(frozen=True, slots=True)
class InterferenceResult:
    """The result of `envkit.interference`.

    Args:
        run: the run folder.
        matrix: adapters by environments; ``None`` if the run was stopped before all were measured.
        page: path of the matrix as a page of Markdown; ``None`` likewise.
        stopped_by: signal that stopped the run; `envkit.resume_interference` continues it.
    """

    run: Path
    matrix: Interference | None
    page: Path | None
    stopped_by: signal.Signals | None


def interference(
    runs: Sequence[Path | str],
    *,
    merge: Sequence[str] = DEFAULT_MERGES,
    limit: int | None = None,
    split: str = "heldout",
    max_task_chars: int | None = None,
    samples: int = DEFAULT_SAMPLES,
    temperature: float = 0.7,
    max_turns: int | None = None,
    sandbox: SandboxBackend | str = "auto",
    root: Path | str = RUNS,
    display: DisplayChoice = "rich",
    command: str | None = None,
) -> InterferenceResult:
    """Measure specialists, joint adapters and merged ones on every environment: a matrix with intervals.

    Does one adapter hold several tasks, or does one task cost another? A joint adapter is compared with each
    environment's specialist, task by task. Specialists are merged too, which needs no training at all.

    Args:
        runs: training runs of one base, or adapter folders in them: one specialist for each environment, and
            any number of runs that trained on several.
        merge: ways to merge the specialists: ``"linear"``, ``"ties"``, ``"dare_linear"`` or ``"cat"``; see
            `envkit.training.merging`.
        limit: play only the first ``limit`` tasks of each environment.
        split, max_task_chars, samples, temperature: as for `envkit.evaluate`.
        max_turns: actions per episode; by default as the joint adapter was trained. Other limits are too.
        sandbox: a backend or its registered name.
        root: folder in which the run folder and the merged adapters are created.
        display: ``"rich"``, ``"quiet"`` or a display of your own.
        command: command to show in the report; by default this call.

    Raises:
        UsageError: bad input, found before any long work; for instance, only one environment.
        EnvkitError: the study failed; see `envkit.errors`.
    """
    from envkit.models import require_training

    require_training()
    from envkit.measure.spec import AgentSpec, BenchSpec, EnvironmentSpec
    from envkit.runs.folder.run_records import base_of
    from envkit.studies.interference.setup import arms_of, merge_all, write_arms
    from envkit.studies.interference.table import BASE, JOINT, SPECIALIST, MatrixRow

    folders = adapter_folders(runs)
    arms = dict(zip(folders, arms_of(folders), strict=True))
    names = [*dict.fromkeys(name for arm in arms.values() for name in arm.episodes)]
    specialists = {folder: arm for folder, arm in arms.items() if arm.kind == SPECIALIST}
    joint = [folder for folder, arm in arms.items() if arm.kind == JOINT]
    if len(names) < 2:
        raise UsageError(
            f"all runs trained on {names[0] if names else 'nothing'}; expected two or more environments"
        )
    if without := [name for name in names if not any(name in arm.episodes for arm in specialists.values())]:
        raise UsageError(f"no run trained on {without[0]} alone; name its specialist's run too")
    if not joint and not merge:
        raise UsageError("no run trained on several environments, and nothing is merged; name one of both")
    model = base_of(folders)
    limits: dict[str, Any] = trained_limits([*joint, *folders])
    if max_turns is not None:
        limits["max_turns"] = max_turns
    spec = BenchSpec(
        tuple(EnvironmentSpec(name, "", limit, split, max_task_chars) for name in names),
        (AgentSpec(BASE, model=model),),
        samples,
        temperature,
        title="One adapter for several tasks",
        **limits,
    )
    with open_display(display) as progress:
        backend = isolated_backend(sandbox, progress)
        merged = merge_all(model, specialists, merge, Path(root), progress)
        rows = {**arms, **merged}
        adapters = [AgentSpec(arm.row, model=model, adapter=str(folder)) for folder, arm in rows.items()]
        spec = replace(spec, agents=(*spec.agents, *adapters))
        typed = command or command_of("interference", repr([*map(str, runs)]))
        run = start_bench(spec, root, backend, progress, typed)
        write_arms(run, [MatrixRow(BASE, BASE), *rows.values()])
        return _finish(run, backend, progress)


def resume_interference(
    run: Path | str,
    *,
    sandbox: SandboxBackend | str = "auto",
    display: DisplayChoice = "rich",
) -> InterferenceResult:
    """Continue `interference` where it was interrupted, or make its page again.

    Args:
        run: the run folder.
        sandbox: a backend or its registered name.
        display: ``"rich"``, ``"quiet"`` or a display of your own.

    Raises:
        StoreError: not such a run, or its tasks or adapters have changed.
        EnvkitError: the study failed; see `envkit.errors`.
    """
    from envkit.models import require_training
    from envkit.runtime.store import RunFolder

    require_training()
    from envkit.studies.interference.setup import read_arms

    folder = RunFolder.open(Path(run))
    read_arms(folder)  # raises before anything is played
    with open_display(display) as progress:
        return _finish(folder, isolated_backend(sandbox, progress), progress)


def _finish(run: RunFolder, backend: SandboxBackend, display: Display) -> InterferenceResult:
    """Play what is missing and write the page, unless the run is stopped before."""
    from envkit.measure.report.page import load_reports
    from envkit.studies.interference.setup import read_arms
    from envkit.studies.interference.table import make_matrix, write_page

    request, refused = play_bench(run, backend, display, resume="envkit study interference")
    if refused:
        raise refused
    if request.signal is not None:
        return InterferenceResult(run.path, None, None, request.signal)
    matrix = make_matrix(load_reports(run.path), read_arms(run))
    page = write_page(matrix, run.path, str(run.manifest.get("command", "")))
    return InterferenceResult(run.path, matrix, page, None)
