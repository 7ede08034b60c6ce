"""Begin and play runs of a bench, and read what adapters record of their training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from envkit.errors import SETUP_ERRORS, UsageError
from envkit.runs.common import DEFAULT_ENVIRONMENT
from envkit.runs.interrupts import StopRequest, stopping_on_signal
from envkit.runs.results import Report, read_report

if TYPE_CHECKING:
    from envkit.measure.spec import BenchSpec
    from envkit.runtime.display import Display
    from envkit.runtime.store import RunFolder
    from envkit.sandbox import SandboxBackend

#: Settings that measuring takes from an adapter's training, unless they are given.
LIMITS: Final = ("max_turns", "max_completion_length", "stop_strings", "max_context_length")


def start_bench(
    spec: BenchSpec,
    root: Path | str,
    backend: SandboxBackend,
    display: Display,
    command: str,
    prices: Path | None = None,
    machine: str | None = None,
) -> RunFolder:
    """Create the run folder of a bench, and say where it is; see `envkit.runs.benchmark.setup.start`."""
    from envkit.runs.benchmark.setup import start

    run = start(
        Path(root),
        spec,
        backend=backend,
        display=display,
        command=command,
        prices=prices,
        priced_machine=machine,
    )
    display.say(f"run folder: {run.path}")
    return run


def play_bench(
    run: RunFolder,
    backend: SandboxBackend,
    display: Display,
    budget_usd: float | None = None,
    resume: str = "envkit bench",
) -> tuple[StopRequest, UsageError | None]:
    """Play all missing episodes of a bench; returns how it was stopped, and a provider's refusal if any."""
    from envkit.runs.benchmark.bench import Bench

    message = (
        f"stopping: finished episodes stay in {run.path}; continue with: {resume} --resume {run.path}; "
        "Ctrl-C again ends at once"
    )
    with stopping_on_signal(display.say, message) as request:
        bench = Bench(run, backend, display, request.should_stop, budget_usd=budget_usd)
        try:
            bench.run()
        except SETUP_ERRORS:
            raise
        except UsageError as error:
            return request, error
    return request, None


def reports_of(run: Path) -> tuple[Report, ...]:
    """Read the reports of a run, one per environment."""
    from envkit.measure.report.page import report_folders

    return tuple(read_report(folder / "report.html") for folder in report_folders(run))


def adapter_folders(paths: Sequence[Path | str]) -> list[Path]:
    """Find the adapter folder that each path names: itself, or a training run's newest checkpoint.

    Raises:
        UsageError: there is none, or there are several.
    """
    from envkit.runs.adapter import adapter_folder

    return [adapter_folder(Path(path)).resolve() for path in paths]


def trained_limits(adapters: Sequence[Path]) -> dict[str, Any]:
    """Return the limits that the first adapter was trained with; empty if its run is not known."""
    from envkit.runs.adapter import training_of

    config = training_of(adapters[0])[0] if adapters else None
    limits = {} if config is None else {name: getattr(config, name) for name in LIMITS}
    return {name: value for name, value in limits.items() if value}  # 0 and () are the defaults


def environment_for(name: str, adapters: Sequence[Path]) -> tuple[str, str]:
    """Return the environment to measure on, and why it was chosen if an adapter should have decided it.

    Args:
        name: what the user named; empty for the environment that the adapters were trained on, or else the
            default.
        adapters: folders of adapters.

    Raises:
        UsageError: nothing is named, and the adapters were trained on several.
    """
    from envkit.runs.folder.run_records import environments_of, training_run_of

    if name:
        return name, ""
    runs = [run for folder in adapters if (run := training_run_of(folder)) is not None]
    if not runs:
        unknown = f"environment: {DEFAULT_ENVIRONMENT}, the default: what the adapter plays is not known"
        return DEFAULT_ENVIRONMENT, unknown if adapters else ""

    trained = list(dict.fromkeys(name for run in runs for name in environments_of(run)))
    if len(trained) > 1:
        raise UsageError(f"trained on {', '.join(trained)}; name the environment to measure on (--env)")
    if trained == [DEFAULT_ENVIRONMENT]:
        return DEFAULT_ENVIRONMENT, ""
    return trained[0], f"environment: {trained[0]}, because the adapter was trained on it"


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name each folder after itself, and after as many folders around it as make the names distinct."""
    names = [path.name for path in paths]
    for depth in range(max((len(path.parents) for path in paths), default=0)):
        if len({*names}) == len(names):
            break
        parents = [path.parents[min(depth, len(path.parents) - 1)].name for path in paths]
        if len({*parents}) > 1:  # a folder that all share distinguishes nothing
            names = [f"{name}@{parent}" for name, parent in zip(names, parents, strict=True)]
    return names
