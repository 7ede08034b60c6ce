"""Commands that measure: eval, bench, rescore, leaderboard, prices."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from envkit.cli.options import (
    DEFAULT_ENVIRONMENT,
    RUNS,
    EnvName,
    Json,
    Root,
    SandboxName,
    command_line,
    heard,
    proved_backend,
)
from envkit.cli.ui import emit, interruptible, live, out
from envkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from envkit.bench.spec import BenchSpec
    from envkit.store import RunFolder
    from envkit.studies.bench import Bench

Tasks = Annotated[
    str,
    typer.Option(
        "--tasks",
        "--heldout",
        help="Held-out tasks: a file, or FORMAT:PATH of a benchmark; default: its own.",
    ),
]
Model = Annotated[str, typer.Option("--model", help="Model id, folder or hub id.")]
Limit = Annotated[int | None, typer.Option(min=1, help="First N tasks only.")]
Samples = Annotated[int, typer.Option(min=1, help="Episodes per task.")]
Temperature = Annotated[float, typer.Option(min=0, help="Of sampling.")]
Turns = Annotated[int, typer.Option(min=1, help="Actions per episode.")]
Tokens = Annotated[int, typer.Option(min=1, help="Most tokens per turn; as the adapter was trained.")]
Stops = Annotated[
    list[str] | None,
    typer.Option(help="Text that ends a turn of a model here as well; repeat. As in training."),
]
Context = Annotated[
    int | None,
    typer.Option(min=0, help="Tokens a turn of a model here is asked with; default: any. As in training."),
]
Prices = Annotated[Path | None, typer.Option("--prices", help="TOML of prices, on top of envkit's own.")]
Machine = Annotated[
    str | None,
    typer.Option(help="Whose hours rows that ran here pay for; default: cpu-2-cores, if it was one."),
]
Against = Annotated[str | None, typer.Option("--against", help="The row that others are compared with.")]


def evaluate(
    agent: Annotated[str, typer.Option(help="model, oracle, no-op or random")] = "model",
    env: EnvName = DEFAULT_ENVIRONMENT,
    tasks: Tasks = "",
    model: Model = "",
    adapter: Annotated[Path | None, typer.Option(help="A trained adapter's folder.")] = None,
    limit: Limit = None,
    samples: Samples = 8,
    temperature: Temperature = 0.7,
    max_turns: Turns = 1,
    max_completion_length: Tokens = 128,
    stop_strings: Stops = None,
    max_context_length: Context = None,
    sandbox: SandboxName = "auto",
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Evaluate one agent on held-out tasks: pass@1 and pass@k with intervals."""
    from envkit.bench.spec import AgentSpec, BenchSpec, EnvironmentSpec

    if agent == "model":
        base, path = _model(model), adapter.resolve() if adapter is not None else None
        row = AgentSpec((path or Path(base)).name, model=base, adapter=str(path or ""))
    else:
        ours = {"adapter": adapter, "model": model, "stop-strings": stop_strings}
        ours |= {"max-context-length": max_context_length}
        if given := [f"--{name}" for name, value in ours.items() if value]:
            raise UsageError(f"--agent {agent} is no model; leave out {', '.join(given)}")
        row = AgentSpec(agent, script=agent)
    spec = BenchSpec(
        (EnvironmentSpec(env, tasks, limit),),
        (row,),
        samples,
        temperature,
        max_turns,
        max_completion_length,
        tuple(stop_strings or ()),
        max_context_length or 0,
    )
    _run(spec, sandbox, root, None, as_json, board=False)


def bench(
    spec: Annotated[Path | None, typer.Argument(help="TOML of environments and agents.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run.")] = None,
    adapter: Annotated[list[Path] | None, typer.Option(help="An adapter; repeat for more rows.")] = None,
    card: Annotated[
        list[str] | None, typer.Option(help="Card from `envkit list`, or a file's path; repeat.")
    ] = None,
    recorded: Annotated[
        list[str] | None, typer.Option(help="Model whose outputs came with the tasks, or a file; repeat.")
    ] = None,
    budget_usd: Annotated[
        float | None,
        typer.Option(
            min=0, help="What all API calls may cost, earlier ones included; default: the spec's, or 1."
        ),
    ] = None,
    env: Annotated[
        str | None, typer.Option(help="Environment name from `envkit list`; default: code-editor.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks", "--heldout", help="Held-out tasks: a file, or FORMAT:PATH; default: its own."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model id, folder or hub id.")] = None,
    limit: Limit = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Episodes per task; default: 8.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Of sampling; default: 0.7.")] = None,
    max_turns: Annotated[int | None, typer.Option(min=1, help="Actions per episode; default: 1.")] = None,
    max_completion_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens per turn; default: 128, or the card's.")
    ] = None,
    stop_strings: Stops = None,
    max_context_length: Context = None,
    prices: Prices = None,
    machine: Machine = None,
    sandbox: SandboxName = "auto",
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Compare agents on the same held-out tasks: from a spec, or adapters with base, cards, and controls.

    Writes a report for each environment, and a leaderboard.
    """
    from envkit.bench.spec import from_toml

    if (spec is not None) + (resume is not None) + any((adapter, card, recorded)) != 1:
        raise UsageError("give one of: a spec, --resume RUN, or rows by --adapter, --card and --recorded")
    own: dict[str, Any] = {"env": env, "tasks": tasks, "model": model, "limit": limit, "samples": samples}
    own |= {
        "temperature": temperature,
        "max_turns": max_turns,
        "max_completion_length": max_completion_length,
        "stop_strings": tuple(stop_strings) if stop_strings else None,
        "max_context_length": max_context_length,
    }
    given = {name: value for name, value in own.items() if value is not None}
    if resume is not None:
        there = {"prices": prices, "root": None if root == RUNS else root}
        given |= {name: value for name, value in there.items() if value is not None}
    if given and (spec is not None or resume is not None):
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"the spec says it, or the run as it began; leave out {named}")
    if resume is not None:
        _resume(resume, sandbox, budget_usd, machine, as_json)
        return
    wanted = (
        from_toml(spec) if spec is not None else _ad_hoc(adapter or [], card or [], recorded or [], given)
    )
    if budget_usd is not None:
        wanted = replace(wanted, budget_usd=budget_usd)
    _run(wanted, sandbox, root, prices, as_json, machine=machine)


def _ad_hoc(
    adapters: Sequence[Path], cards: Sequence[str], recorded: Sequence[str], given: dict[str, Any]
) -> BenchSpec:
    """The spec of a command line's rows, with their base and the controls."""
    from envkit.agents.cards import load_card
    from envkit.bench.spec import AgentSpec, BenchSpec, EnvironmentSpec

    if "model" in given and not adapters:
        raise UsageError("--model is the base of adapters, and there are none; leave it out, or give a spec")
    if not adapters and (own := [name for name in ("stop_strings", "max_context_length") if name in given]):
        option = f"--{own[0].replace('_', '-')}"
        raise UsageError(f"{option} is for adapters and their base, and there are none; leave it out")
    model = _model(given.pop("model", ""))
    rows = [AgentSpec(name, script=name) for name in ("oracle", "no-op")]
    if adapters:
        rows.append(AgentSpec("base", model=model))
    paths = [path.resolve() for path in adapters]
    for path, name in zip(paths, _told_apart(paths), strict=True):
        rows.append(AgentSpec(name, model=model, adapter=str(path)))
    rows += [AgentSpec(load_card(name).name, card=_path_or_name(name)) for name in cards]
    rows += [
        AgentSpec(Path(name).name.removesuffix(".jsonl"), recorded=_path_or_name(name)) for name in recorded
    ]
    env = given.pop("env", DEFAULT_ENVIRONMENT)
    tasks = EnvironmentSpec(env, given.pop("tasks", ""), given.pop("limit", None))
    settings: dict[str, Any] = {"samples": 8, **given}
    return BenchSpec((tasks,), tuple(rows), **settings)


def _told_apart(paths: Sequence[Path]) -> list[str]:
    """Names of folders: their own, with as many of the folders around as it takes to tell them apart."""
    names = [path.name for path in paths]
    for depth in range(max((len(path.parents) for path in paths), default=0)):
        if len({*names}) == len(names):
            break
        around = [path.parents[min(depth, len(path.parents) - 1)].name for path in paths]
        if len({*around}) > 1:  # what all have in common tells nothing
            names = [f"{name}@{folder}" for name, folder in zip(names, around, strict=True)]
    return names


def _path_or_name(word: str) -> str:
    """A path made absolute, so that a run can be gone on with from anywhere; a name as it is."""
    return str(Path(word).resolve()) if Path(word).exists() else word


def rescore(
    run: Annotated[Path, typer.Argument(help="A bench's run folder.")],
    sandbox: SandboxName = "auto",
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Grade a bench's stored episodes again, with the environment as it is now; nothing is asked again."""
    from envkit.store import RunFolder
    from envkit.studies.bench import prices_of
    from envkit.studies.rescore import rescore as grade_again

    with live() as display, interruptible() as go_on:
        backend = proved_backend(sandbox, False, display)
        again = grade_again(RunFolder.open(run), root, backend, display, go_on, command_line())
    board = write_board(again.run.path, [again.run.path], prices=prices_of(again.run))
    if as_json:
        emit({"run": str(again.run.path), "leaderboard": str(board), "changed": again.changed})
        return
    for change in again.changed[:20]:
        out.print(str(change), markup=False)
    out.print(f"{len(again.changed)} of {again.episodes} verdicts changed")
    out.print(f"leaderboard: {board}", soft_wrap=True, markup=False)


def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of bench, eval, train or demo.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the files.")] = Path("runs"),
    machine: Machine = None,
    prices: Prices = None,
    against: Against = None,
    as_json: Json = False,
) -> None:
    """Put the rows of runs on one board: solve rate, dollars per solved task, comparisons with intervals."""
    page = write_board(output, runs, machine, prices, against)
    if as_json:
        emit({"leaderboard": str(page)})
    else:
        out.print(f"leaderboard: {page}", soft_wrap=True, markup=False)


def prices(
    name: Annotated[str, typer.Argument(help="Part of a model's or machine's name; all, if left out.")] = "",
    table: Prices = None,
    as_json: Json = False,
) -> None:
    """List the price table: dollars per million tokens, and per hour of machines."""
    from envkit.prices import load_prices

    found = load_prices(table)
    models = {model: price for model, price in sorted(found.models.items()) if name in model}
    machines = {machine: usd for machine, usd in sorted(found.machines.items()) if name in machine}
    if not models and not machines:
        raise UsageError(f"no model or machine in the table of {found.date} has {name!r} in its name")
    if as_json:
        sources = {model: found.notes.get(model, found.source) for model in models}
        rows = {m: {**asdict(price), "source": sources[m]} for m, price in models.items()}
        emit({"date": found.date, "source": found.source, "models": rows, "machines": machines})
        return
    caption = f"$ per million tokens, {found.date}: {found.source}"
    shown = Table("model", "input", "output", "cached", "source", box=None, caption=caption)
    for model, price in models.items():
        cached = "" if price.cached is None else f"{price.cached:g}"
        note = escape(found.notes.get(model, ""))
        shown.add_row(escape(model), f"{price.input:g}", f"{price.output:g}", cached, note)
    if models:
        out.print(shown)
    if machines:
        hours = ", ".join(f"{machine} ${usd:g}" for machine, usd in machines.items())
        out.print(f"per hour: {hours}", markup=False)


def _model(given: str) -> str:
    from envkit.models import DEFAULT_MODEL

    return _path_or_name(given) if given else DEFAULT_MODEL


def _run(
    spec: BenchSpec,
    sandbox: str,
    root: Path,
    prices: Path | None,
    as_json: bool,
    *,
    board: bool = True,
    machine: str | None = None,
) -> None:
    """Start a bench and see it through."""
    from envkit.studies.bench import Bench, start

    _require_priced(machine, prices)
    with live() as display:
        backend = proved_backend(sandbox, False, display)
        run = start(root, spec, backend=backend, display=display, command=command_line(), prices=prices)
        display.say(f"run folder: {escape(str(run.path))}")
        with interruptible() as go_on:
            ended = _played(Bench(run, backend, display, go_on), stopped=lambda: not go_on())
    _said(run, ended, as_json, board=board, machine=machine)


def _resume(folder: Path, sandbox: str, budget_usd: float | None, machine: str | None, as_json: bool) -> None:
    from envkit.store import RunFolder
    from envkit.studies.bench import Bench, prices_of

    with live() as display:
        backend = proved_backend(sandbox, False, display)
        run = RunFolder.open(folder)
        _require_priced(machine, prices_of(run))
        with interruptible() as go_on:
            made = Bench(run, backend, display, go_on, budget_usd=budget_usd)
            ended = _played(made, stopped=lambda: not go_on())
    _said(run, ended, as_json, machine=machine)


def _require_priced(machine: str | None, prices: Path | None) -> None:
    """Refuse a machine without a price before anything is played, not when the board is made."""
    from envkit.prices import load_prices

    if machine is not None:
        load_prices(prices).hourly_usd(machine)


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a bench has ended: by itself, by a person, or because a provider or the budget refuses to go on."""

    stopped: bool
    refused: UsageError | None = None


def _played(made: Bench, stopped: Callable[[], bool]) -> _Ended:
    try:
        made.run()
    except UsageError as refused:
        return _Ended(True, refused)
    return _Ended(stopped())


def _said(
    run: RunFolder, ended: _Ended, as_json: bool, *, board: bool = True, machine: str | None = None
) -> None:
    """Say what a bench has found, also if it was refused on its way.

    Raises:
        UsageError: what refused it.
    """
    from envkit.bench.report import report_folders
    from envkit.studies.bench import prices_of

    if ended.refused and not any(run.path.rglob("report.json")):
        raise ended.refused  # before there was anything to report
    folders = report_folders(run.path)
    page = write_board(run.path, [run.path], machine, prices_of(run)) if board else None
    found = [heard(folder / "report.html", as_json, run.path) for folder in folders]
    if as_json:
        where = {"leaderboard": str(page)} if page else {}
        emit({"run": str(run.path), "stopped": ended.stopped, **where, "reports": found})
    else:
        if page:
            out.print(f"leaderboard: {page}", soft_wrap=True, markup=False)
        if ended.stopped:
            out.print(f"go on with: envkit bench --resume {run.path}", soft_wrap=True, markup=False)
    if ended.refused:
        raise ended.refused


def write_board(
    output: Path,
    runs: Sequence[Path],
    machine: str | None = None,
    prices: Path | None = None,
    against: str | None = None,
) -> Path:
    """Write the leaderboard of some runs into a folder; returns the page's path."""
    from envkit.bench.leaderboard import write_leaderboard
    from envkit.bench.leaderboard_data import make_leaderboard
    from envkit.bench.report import load_reports
    from envkit.prices import load_prices

    reports = [report for run in runs for report in load_reports(run)]
    return write_leaderboard(make_leaderboard(reports, load_prices(prices), machine, against), output)
