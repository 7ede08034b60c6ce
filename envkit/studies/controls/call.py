"""Compare ways of changing a model: what each is worth, and what it costs."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envkit.errors import UsageError
from envkit.measure.spec import DEFAULT_SAMPLES
from envkit.runs.bench_runs import (
    adapter_folders,
    distinct_names,
    environment_for,
    play_bench,
    start_bench,
    trained_limits,
)
from envkit.runs.common import RUNS, command_of, isolated_backend
from envkit.runs.rich_display import DisplayChoice, open_display

if TYPE_CHECKING:
    from envkit.runtime.display import Display
    from envkit.runtime.store import RunFolder
    from envkit.sandbox import SandboxBackend
    from envkit.studies.controls.table import Controls

#: Tasks on which the divergence from the base is measured.
DEFAULT_KL_TASKS = 50


@dataclass(frozen=True, slots=True)
class ControlResult:
    """The result of `envkit.compare_controls`.

    Args:
        run: the run folder.
        found: the comparison; ``None`` if the run was stopped before all was measured.
        page: path of the comparison as a page of Markdown; ``None`` likewise.
        stopped_by: signal that stopped the run; `envkit.resume_controls` continues it.
    """

    run: Path
    found: Controls | None
    page: Path | None
    stopped_by: signal.Signals | None


def compare_controls(
    adapters: Sequence[Path | str],
    *,
    prompts: Sequence[Path | str] = (),
    environment: str | None = None,
    model: Path | str | None = None,
    limit: int | None = None,
    split: str = "heldout",
    max_task_chars: int | None = None,
    samples: int = DEFAULT_SAMPLES,
    temperature: float = 0.7,
    max_turns: int | None = None,
    kl_tasks: int = DEFAULT_KL_TASKS,
    sandbox: SandboxBackend | str = "auto",
    root: Path | str = RUNS,
    display: DisplayChoice = "rich",
    command: str | None = None,
) -> ControlResult:
    """Compare ways of changing a model: solve rate, bytes, sampled tokens, and divergence from the base.

    A row is on the Pareto front if no other solves as much and costs no more in any of these.

    Args:
        adapters: training runs of one base, steering vectors, or adapter folders.
        prompts: run folders of `search_prompt`: each is a row, the base with that system message.
        environment: its registered name; by default the one that the adapters were trained on.
        model: the base; by default the one that the adapters name.
        limit: play only the first ``limit`` tasks.
        split, max_task_chars, samples, temperature: as for `envkit.evaluate`.
        max_turns: actions per episode; by default as the first adapter was trained. Other limits are too.
        kl_tasks: tasks on which the divergence is measured, once each.
        sandbox: a backend or its registered name.
        root: folder in which the run folder is created.
        display: ``"rich"``, ``"quiet"`` or a display of your own.
        command: command to show in the report; by default this call.

    Raises:
        UsageError: bad input, found before any long work.
        EnvkitError: the comparison failed; see `envkit.errors`.
    """
    from envkit.models import DEFAULT_MODEL, require_training, resolve

    require_training()
    from envkit.measure.spec import AgentSpec, BenchSpec, EnvironmentSpec
    from envkit.runs.folder.run_records import base_of
    from envkit.runs.tools.prompt_search import read_prompt
    from envkit.studies.controls.setup import control_of, require_known_scale, write_controls
    from envkit.studies.controls.table import PROMPT, Control

    if not adapters:
        raise UsageError("expected at least one adapter to compare with its base")
    folders = adapter_folders(adapters)
    found = [read_prompt(Path(prompt)) for prompt in prompts]
    names = distinct_names([*folders, *(Path(prompt).resolve() for prompt in prompts)])
    if twice := [name for name in names if names.count(name) > 1 or name == "base"]:
        raise UsageError(f"{twice[0]} is no name of one adapter alone; rename its folder")
    name, why = environment_for(environment or "", folders)
    base = str(model or base_of(folders) or DEFAULT_MODEL)
    limits: dict[str, Any] = trained_limits(folders)
    if max_turns is not None:
        limits["max_turns"] = max_turns
    rows = [
        AgentSpec(row, model=base, adapter=str(folder))
        for row, folder in zip(names[: len(folders)], folders, strict=True)
    ]
    controls = [control_of(row.name, folder) for row, folder in zip(rows, folders, strict=True)]
    for control, folder in zip(controls, folders, strict=True):
        require_known_scale(control, folder)
    for row, prompt in zip(names[len(folders) :], found, strict=True):
        rows.append(AgentSpec(row, model=base, system=prompt.system))
        controls.append(
            Control(row, PROMPT, size_bytes=len(prompt.system.encode()), sampled_tokens=prompt.sampled_tokens)
        )
    for path, prompt in zip(prompts, found, strict=True):
        if prompt.environment != name:
            raise UsageError(
                f"{path} was searched on {prompt.environment}, and {name} is played; leave it out"
            )
    with open_display(display) as progress:
        if why:
            progress.say(why)
        digest = resolve(base, progress).digest
        for path, prompt in zip(prompts, found, strict=True):
            if prompt.model_digest != digest:
                raise UsageError(
                    f"{path} was searched with {prompt.model}, not with the base {base}; leave it out"
                )
        spec = BenchSpec(
            (EnvironmentSpec(name, "", limit, split, max_task_chars),),
            (AgentSpec("base", model=base), *rows),
            samples,
            temperature,
            title="Ways to change a model",
            **limits,
        )
        backend = isolated_backend(sandbox, progress)
        typed = command or command_of("compare_controls", repr([*map(str, adapters)]))
        run = start_bench(spec, root, backend, progress, typed)
        write_controls(run, [Control("base"), *controls], kl_tasks)
        return _finish(run, backend, progress)


def resume_controls(
    run: Path | str,
    *,
    sandbox: SandboxBackend | str = "auto",
    display: DisplayChoice = "rich",
) -> ControlResult:
    """Continue `compare_controls` where it was interrupted, or make its page again.

    Args:
        run: the run folder.
        sandbox: a backend or its registered name.
        display: ``"rich"``, ``"quiet"`` or a display of your own.

    Raises:
        StoreError: not such a run, or its tasks or adapters have changed.
        EnvkitError: the comparison failed; see `envkit.errors`.
    """
    from envkit.models import require_training
    from envkit.runtime.store import RunFolder

    require_training()
    from envkit.studies.controls.setup import read_controls

    folder = RunFolder.open(Path(run))
    read_controls(folder)  # raises before anything is played
    with open_display(display) as progress:
        return _finish(folder, isolated_backend(sandbox, progress), progress)


def _finish(run: RunFolder, backend: SandboxBackend, display: Display) -> ControlResult:
    """Play what is missing and write the page, unless the run is stopped before."""
    from envkit.measure.report.page import load_reports
    from envkit.runs.interrupts import stopping_on_signal
    from envkit.studies.controls.setup import measure_kl, read_controls
    from envkit.studies.controls.table import make_controls, write_page

    request, refused = play_bench(run, backend, display, resume="envkit study controls")
    if refused:
        raise refused
    if request.signal is not None:
        return ControlResult(run.path, None, None, request.signal)
    controls, kl_tasks = read_controls(run)
    message = f"stopping after this row; continue with: envkit study controls --resume {run.path}"
    with stopping_on_signal(display.say, message) as stopping:
        kl = measure_kl(run, controls, kl_tasks, backend, display, stopping.should_stop)
    if stopping.signal is not None:
        return ControlResult(run.path, None, None, stopping.signal)
    [report] = load_reports(run.path)
    found = make_controls(report, controls, kl)
    page = write_page(found, run.path, str(run.manifest.get("command", "")))
    return ControlResult(run.path, found, page, None)
