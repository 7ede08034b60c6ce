"""Measure agents (`evaluate`, `bench`), grade their runs again (`rescore`) and rank them (`leaderboard`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envkit.errors import UsageError
from envkit.measure.spec import DEFAULT_SAMPLES
from envkit.runs.bench_runs import (
    adapter_folders,
    distinct_names,
    environment_for,
    play_bench,
    reports_of,
    start_bench,
    trained_limits,
)
from envkit.runs.common import RUNS, absolute_if_path, command_of, isolated_backend
from envkit.runs.interrupts import StopRequest, stopping_on_signal
from envkit.runs.results import BenchResult, EvalResult, RescoreResult
from envkit.runs.rich_display import DisplayChoice, open_display

if TYPE_CHECKING:
    from envkit.measure.passk import PassComparison
    from envkit.measure.spec import BenchSpec
    from envkit.runtime.store import RunFolder
    from envkit.sandbox import SandboxBackend

#: Sampling temperature of `evaluate`.
DEFAULT_TEMPERATURE = 0.7


def evaluate(
    environment: str = "",
    *,
    agent: str = "model",
    model: Path | str = "",
    adapter: Path | str | None = None,
    tasks: Path | str = "",
    limit: int | None = None,
    split: str = "heldout",
    max_task_chars: int | None = None,
    samples: int = DEFAULT_SAMPLES,
    temperature: float = DEFAULT_TEMPERATURE,
    max_turns: int | None = None,
    max_completion_length: int | None = None,
    stop_strings: Sequence[str] | None = None,
    max_context_length: int | None = None,
    shots: int = 0,
    system: str = "",
    device: str = "cpu",
    sandbox: SandboxBackend | str = "auto",
    root: Path | str = RUNS,
    display: DisplayChoice = "rich",
    command: str | None = None,
) -> EvalResult:
    """Evaluate one agent on held-out tasks: pass@1 and pass@k with intervals.

    Args:
        environment: its registered name; by default the one that the adapter was trained on, or else
            ``"code-editor"``.
        agent: ``"model"``, or a scripted one: ``"oracle"``, ``"no-op"``, or a baseline of the environment,
            such as the code editor's ``"enumerate"``.
        model: model id, folder or hub id; by default the adapter's base; without an adapter, the default
            model, or the small one if little memory is free.
        adapter: a trained adapter's folder, or a training run's, whose newest checkpoint is measured. The
            limits below are by default those of its training.
        tasks: a task file, or ``FORMAT:PATH`` of a published benchmark; by default the environment's own.
        limit: play only the first ``limit`` tasks.
        split: of the environment's own tasks: ``"heldout"`` to choose by, or ``"test"`` for a final report.
        max_task_chars: leave out longer tasks: those whose prompt and files have together more characters.
        samples: episodes per task.
        temperature: sampling temperature.
        max_turns: actions per episode; by default the environment's own number.
        max_completion_length: tokens per turn, at most; by default 384.
        stop_strings: texts that end a turn; by default none.
        max_context_length: tokens a turn is asked with, at most; 0, the default, for the model's own limit.
        shots: solved train tasks that the model sees first (few-shot prompting).
        system: the model's system message; by default the environment's own.
        device: of the model: ``"cpu"``, or ``"cuda"`` for one NVIDIA GPU.
        sandbox: a backend or its registered name.
        root: folder in which the run folder is created.
        display: ``"rich"``, ``"quiet"`` or a display of your own.
        command: command to show in the report; by default this call.

    Raises:
        UsageError: bad input, found before any long work.
        EnvkitError: the evaluation failed; see `envkit.errors`.
    """
    from envkit.measure.spec import AgentSpec, BenchSpec, EnvironmentSpec
    from envkit.models import require_training

    paths: list[Path] = []
    if agent == "model":
        require_training()
        paths = [] if adapter is None else adapter_folders([adapter])
        base, reason = _base(model, paths)
        path = str(paths[0]) if paths else ""
        row = AgentSpec(Path(path or base).name, model=base, adapter=path, shots=shots, system=system)
    else:
        given = {
            "adapter": adapter,
            "model": model,
            "stop_strings": stop_strings,
            "max_context_length": max_context_length,
            "shots": shots,
            "system": system,
            "temperature": temperature != DEFAULT_TEMPERATURE,
            "max_completion_length": max_completion_length,
            "device": device != "cpu",
        }
        if unused := [name for name, value in given.items() if value]:
            raise UsageError(f"agent {agent!r} is scripted and takes no model; leave out {', '.join(unused)}")
        row, reason = AgentSpec(agent, script=agent), ""
    told: dict[str, Any] = {
        "max_turns": max_turns,
        "max_completion_length": max_completion_length,
        "stop_strings": None if stop_strings is None else tuple(stop_strings),
        "max_context_length": max_context_length,
    }
    limits = trained_limits(paths) | {name: value for name, value in told.items() if value is not None}
    environment, why = environment_for(environment, paths)
    spec = BenchSpec(
        (EnvironmentSpec(environment, str(tasks), limit, split, max_task_chars),),
        (row,),
        samples,
        temperature,
        device=device,
        **limits,
    )
    with open_display(display) as progress:
        backend = isolated_backend(sandbox, progress)
        for line in filter(None, (reason, why)):
            progress.say(line)
        run = start_bench(spec, root, backend, progress, command or command_of("evaluate", repr(environment)))
        request, refused = play_bench(run, backend, progress)
    if refused:
        raise refused
    [report] = reports_of(run.path)
    return EvalResult(run.path, report, row.name, request.signal)


def bench(
    spec: BenchSpec | Path | str,
    *,
    budget_usd: float | None = None,
    prices: Path | str | None = None,
    machine: str | None = None,
    sandbox: SandboxBackend | str = "auto",
    root: Path | str = RUNS,
    display: DisplayChoice = "rich",
    command: str | None = None,
) -> BenchResult:
    """Compare agents on the same held-out tasks; write a report per environment, and a leaderboard.

    The environments' baselines, such as chance and search, are added to the agents.

    Args:
        spec: what to measure: a `BenchSpec`, a TOML file of one, or what `bench_spec` returns.
        budget_usd: what all API calls may cost together; by default the spec's budget.
        prices: a TOML file of prices, on top of envkit's own.
        machine: machine whose hourly price local rows pay; by default ``cpu-2-cores`` if it was one,
            and half of its price for one core.
        sandbox: a backend or its registered name.
        root: folder in which the run folder is created.
        display: ``"rich"``, ``"quiet"`` or a display of your own.
        command: command to show in the reports; by default this call.

    Raises:
        UsageError: bad input, found before any long work. What a provider refuses is in the result.
        EnvkitError: the comparison failed; see `envkit.errors`.
    """
    from envkit.measure.spec import from_toml
    from envkit.runs.benchmark.setup import with_baselines

    parsed = with_baselines(from_toml(Path(spec)) if isinstance(spec, str | Path) else spec)
    if budget_usd is not None:
        parsed = replace(parsed, budget_usd=budget_usd)
    table = None if prices is None else Path(prices)
    _require_priced(machine, table)
    with open_display(display) as progress:
        backend = isolated_backend(sandbox, progress)
        subject = repr(str(spec)) if isinstance(spec, str | Path) else "spec"
        shown = command or command_of("bench", subject)
        run = start_bench(parsed, root, backend, progress, shown, table, machine)
        request, refused = play_bench(run, backend, progress)
    return _bench_result(run, request, refused, machine)


def resume_bench(
    run: Path | str,
    *,
    budget_usd: float | None = None,
    machine: str | None = None,
    sandbox: SandboxBackend | str = "auto",
    display: DisplayChoice = "rich",
) -> BenchResult:
    """Continue a `bench` or `evaluate` run that was interrupted, or whose budget was used up.

    Args:
        run: the run folder.
        budget_usd: a new budget for all API calls, those already paid for included.
        machine: as for `bench`; by default the one that the run began with.
        sandbox: a backend or its registered name.
        display: ``"rich"``, ``"quiet"`` or a display of your own.

    Raises:
        StoreError: not a bench run, or its tasks, weights, packages or cards have changed.
        EnvkitError: the comparison failed; see `envkit.errors`.
    """
    from envkit.runs.benchmark.setup import priced_machine_of, prices_of
    from envkit.runtime.store import RunFolder

    folder = RunFolder.open(Path(run))
    machine = priced_machine_of(folder) if machine is None else machine
    _require_priced(machine, prices_of(folder))
    with open_display(display) as progress:
        backend = isolated_backend(sandbox, progress)
        request, refused = play_bench(folder, backend, progress, budget_usd)
    return _bench_result(folder, request, refused, machine)


def bench_spec(
    *,
    adapters: Sequence[Path | str] = (),
    cards: Sequence[str] = (),
    recorded: Sequence[str] = (),
    environment: str = "",
    tasks: Path | str = "",
    limit: int | None = None,
    split: str = "heldout",
    max_task_chars: int | None = None,
    model: Path | str = "",
    samples: int = DEFAULT_SAMPLES,
    shots: int = 0,
    **settings: Any,
) -> BenchSpec:
    """Make the specification of a comparison: some agents, with their base model and both controls.

    Args:
        adapters: trained adapter folders, or training runs for their newest checkpoints; each is a row,
            beside a row of their base model.
        cards: API models: names from `envkit list`, or paths of card files.
        recorded: models whose outputs came with the tasks, or files of outputs.
        environment, tasks: as for `evaluate`.
        limit: play only the first ``limit`` tasks.
        split, max_task_chars: as for `evaluate`.
        model: the base of the adapters; by default the one that they were trained on.
        samples: episodes per task.
        shots: above 0, a further row of the base model, which sees so many solved train tasks first.
        settings: further fields of `BenchSpec`. Turns, lengths and stop strings are by default those that the
            first adapter was trained with.

    Raises:
        UsageError: no agent is named, a card does not exist, a setting needs adapters and there are none, or
            the adapters have several bases.
        MissingExtraError: an adapter is named, and the extra ``train`` is not installed.
    """
    from envkit.agents.cards import load_card
    from envkit.measure.spec import AgentSpec, BenchSpec, EnvironmentSpec
    from envkit.models import DEFAULT_MODEL, require_training
    from envkit.runs.folder.run_records import base_of

    if not (adapters or cards or recorded):
        raise UsageError("no agent to compare; name an adapter, a card or recorded outputs")
    if not adapters:
        for_models = {"model": model, "shots": shots, **settings}
        names = ("model", "shots", "stop_strings", "max_context_length", "device")
        if unused := [name for name in names if for_models.get(name)]:
            raise UsageError(
                f"{unused[0]} is for adapters and their base model, and no adapter is named; leave it out"
            )
    else:
        require_training()
    paths = adapter_folders(adapters)
    limits = {name: value for name, value in trained_limits(paths).items() if name not in settings}
    if "max_turns" in limits:
        settings["max_turns"] = limits.pop("max_turns")
    base = absolute_if_path(model) if model else base_of(paths) or DEFAULT_MODEL
    rows = [AgentSpec(name, script=name) for name in ("oracle", "no-op")]
    if adapters:
        rows.append(AgentSpec("base", model=base, **limits))
    if adapters and shots:
        rows.append(AgentSpec(f"base, {shots}-shot", model=base, shots=shots, **limits))
    for path, name in zip(paths, distinct_names(paths), strict=True):
        rows.append(AgentSpec(name, model=base, adapter=str(path), **limits))
    rows += [AgentSpec(load_card(card).name, card=absolute_if_path(card)) for card in cards]
    rows += [
        AgentSpec(Path(name).name.removesuffix(".jsonl"), recorded=absolute_if_path(name))
        for name in recorded
    ]
    environment, _ = environment_for(environment, paths)
    played = EnvironmentSpec(environment, str(tasks), limit, split, max_task_chars)
    return BenchSpec((played,), tuple(rows), samples=samples, **settings)


def rescore(
    run: Path | str,
    *,
    sandbox: SandboxBackend | str = "auto",
    root: Path | str = RUNS,
    display: DisplayChoice = "rich",
    command: str | None = None,
) -> RescoreResult:
    """Grade a bench's stored episodes again, with the environment as it is now; no agent is asked again.

    Args:
        run: the run folder of a bench; it is left as it is.
        sandbox: a backend or its registered name.
        root: folder in which the new run folder is created.
        display: ``"rich"``, ``"quiet"`` or a display of your own.
        command: command to show in the reports; by default this call.

    Raises:
        StoreError: not a bench run, or a damaged one.
    """
    from envkit.runs.benchmark.rescore import rescore as grade_again
    from envkit.runs.benchmark.setup import priced_machine_of, prices_of
    from envkit.runtime.store import RunFolder

    old = RunFolder.open(Path(run))
    message = "stopping: episodes that are graded so far get their report; Ctrl-C again ends at once"
    with open_display(display) as progress:
        backend = isolated_backend(sandbox, progress)
        with stopping_on_signal(progress.say, message) as request:
            rescored = grade_again(
                old,
                Path(root),
                backend,
                progress,
                request.should_stop,
                command or command_of("rescore", repr(str(run))),
            )
    new = rescored.run
    page = leaderboard([new.path], new.path, machine=priced_machine_of(new), prices=prices_of(new))
    return RescoreResult(new.path, page, rescored.episodes, rescored.changed, request.signal)


def leaderboard(
    runs: Sequence[Path | str],
    output: Path | str = RUNS,
    *,
    machine: str | None = None,
    prices: Path | str | None = None,
    against: str | None = None,
    unsolved_by: str = "",
    seeds: bool = False,
) -> Path:
    """Put the rows of runs on one board: solve rate, dollars per solved task, comparisons with intervals.

    Args:
        runs: run folders of train, demo, evaluate or bench.
        output: the folder that the board's files are written to.
        machine: as for `bench`.
        prices: a TOML file of prices, on top of envkit's own.
        against: the row that the others are compared with.
        unsolved_by: count only the tasks that this row never solved.
        seeds: take rows together whose names are equal, or equal up to an ending such as ``seed 1``: one
            recipe, trained with several seeds.

    Returns:
        The path of the HTML page.

    Raises:
        StoreError: a run has no report.
        UsageError: no such machine, model price or row; or, with ``seeds``, no name has several adapters.
    """
    from envkit.measure.leaderboard.data import make_leaderboard
    from envkit.measure.leaderboard.page import write_leaderboard
    from envkit.measure.report.page import load_reports
    from envkit.runtime.prices import load_prices

    reports = [report for run in runs for report in load_reports(Path(run))]
    table = load_prices(None if prices is None else Path(prices))
    board = make_leaderboard(reports, table, machine, against, unsolved_by=unsolved_by, seeds=seeds)
    return write_leaderboard(board, Path(output))


def pass_at_k(
    runs: Sequence[Path | str], *, row: str | None = None, against: str | None = None
) -> list[PassComparison]:
    """Compare rows by pass@k, before and after training: new tasks solved, or rare solutions made frequent?

    Args:
        runs: run folders of train, evaluate or bench, of the same tasks with many samples each.
        row: the row to look at; by default every trained adapter's.
        against: the row to compare with; by default the untouched model's.

    Raises:
        StoreError: a run has no report.
        UsageError: no such row, or two rows have no task in common.
    """
    from envkit.measure.passk import compare_pass_at_k
    from envkit.measure.report.page import load_reports

    return compare_pass_at_k([report for run in runs for report in load_reports(Path(run))], row, against)


def _bench_result(
    run: RunFolder, request: StopRequest, refused: UsageError | None, machine: str | None
) -> BenchResult:
    from envkit.runs.benchmark.setup import prices_of

    page = leaderboard([run.path], run.path, machine=machine, prices=prices_of(run))
    return BenchResult(run.path, reports_of(run.path), page, request.signal, refused)


def _require_priced(machine: str | None, prices: Path | None) -> None:
    """Raise if a machine has no price, before anything is played."""
    from envkit.runtime.prices import load_prices

    if machine is not None:
        load_prices(prices).hourly_usd(machine)


def _base(given: Path | str, adapters: Sequence[Path]) -> tuple[str, str]:
    """Return the base model of a row, and why it was chosen if nobody named it."""
    from envkit.models import choose_model
    from envkit.runs.folder.run_records import base_of

    if given:
        return absolute_if_path(given), ""
    recorded = base_of(adapters)
    return (recorded, "") if recorded else choose_model()
