"""Commands that measure: eval, bench, rescore, leaderboard, prices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from envkit.cli.parts import (
    DEFAULT_ENVIRONMENT,
    EnvName,
    Json,
    Root,
    SandboxName,
    command_line,
    done,
    proved_backend,
)
from envkit.cli.ui import emit, interruptible, live, out
from envkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envkit.bench.spec import BenchSpec
    from envkit.display import Display
    from envkit.sandbox import SandboxBackend
    from envkit.store import RunFolder

#: What rows that ran here are priced as, unless somebody says otherwise.
DEFAULT_MACHINE = "cpu-2-cores"

Tasks = Annotated[
    str,
    typer.Option("--tasks", "--heldout", help="Task file, or FORMAT:PATH of a benchmark; default: its own."),
]
Model = Annotated[str, typer.Option("--model", help="Model id, folder or hub id.")]
Limit = Annotated[int | None, typer.Option(min=1, help="First N tasks only.")]
Samples = Annotated[int, typer.Option(min=1, help="Episodes per task.")]
Temperature = Annotated[float, typer.Option(min=0, help="Of sampling.")]
Turns = Annotated[int, typer.Option(min=1, help="Actions per episode.")]
Tokens = Annotated[int, typer.Option(min=1, help="Most tokens per turn; as the adapter was trained.")]
Prices = Annotated[Path | None, typer.Option("--prices", help="TOML of prices, on top of envkit's own.")]
Machine = Annotated[str, typer.Option("--machine", help="Whose hours rows that ran here pay for.")]
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
    sandbox: SandboxName = "auto",
    root: Root = Path("runs"),
    as_json: Json = False,
) -> None:
    """Evaluate one agent on held-out tasks: pass@1 and pass@k with intervals."""
    from envkit.bench.spec import AgentSpec, BenchSpec, EnvironmentSpec

    if agent == "model":
        name = adapter.name if adapter is not None else agent
        row = AgentSpec(name, model=_model(model), adapter=str(adapter or ""))
    else:
        row = AgentSpec(agent, script=agent)
    spec = BenchSpec(
        (EnvironmentSpec(env, tasks, limit),), (row,), samples, temperature, max_turns, max_completion_length
    )
    _run(spec, sandbox, root, None, as_json, board=False)


def bench(
    spec: Annotated[Path | None, typer.Argument(help="TOML of environments and agents.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run.")] = None,
    adapter: Annotated[list[Path] | None, typer.Option(help="An adapter; repeat for more rows.")] = None,
    card: Annotated[list[str] | None, typer.Option(help="Card of a model behind an API; repeat.")] = None,
    recorded: Annotated[
        list[str] | None, typer.Option(help="Model whose outputs came with the tasks, or a file; repeat.")
    ] = None,
    budget_usd: Annotated[float, typer.Option(min=0, help="What all API calls may cost.")] = 1.0,
    env: EnvName = DEFAULT_ENVIRONMENT,
    tasks: Tasks = "",
    model: Model = "",
    limit: Limit = None,
    samples: Samples = 8,
    temperature: Temperature = 0.7,
    max_turns: Turns = 1,
    max_completion_length: Tokens = 128,
    prices: Prices = None,
    sandbox: SandboxName = "auto",
    root: Root = Path("runs"),
    as_json: Json = False,
) -> None:
    """Compare agents on the same held-out tasks: from a spec, or adapters and cards with base and controls.

    Writes a report for each environment, and a leaderboard.
    """
    from envkit.bench.spec import AgentSpec, BenchSpec, EnvironmentSpec, from_toml

    if (spec is not None) + (resume is not None) + any((adapter, card, recorded)) != 1:
        raise UsageError("give one of: a spec, --resume RUN, or rows by --adapter, --card and --recorded")
    if resume is not None:
        _resume(resume, sandbox, as_json)
        return
    if spec is not None:
        _run(from_toml(spec), sandbox, root, prices, as_json)
        return
    rows = [AgentSpec(name, script=name) for name in ("oracle", "no-op")]
    rows.append(AgentSpec("base", model=_model(model)))
    paths = adapter or []
    for path in paths:  # steps of two runs have equal names
        lone = [other.name for other in paths].count(path.name) == 1
        name = path.name if lone else f"{path.name}@{path.resolve().parents[1].name}"
        rows.append(AgentSpec(name, model=_model(model), adapter=str(path)))
    rows += [AgentSpec(Path(name).stem, card=name) for name in card or []]
    rows += [AgentSpec(Path(name).stem if "/" in name else name, recorded=name) for name in recorded or []]
    made = BenchSpec(
        (EnvironmentSpec(env, tasks, limit),),
        tuple(rows),
        samples,
        temperature,
        max_turns,
        max_completion_length,
        budget_usd,
    )
    _run(made, sandbox, root, prices, as_json)


def rescore(
    run: Annotated[Path, typer.Argument(help="A bench's run folder.")],
    sandbox: SandboxName = "auto",
    root: Root = Path("runs"),
    as_json: Json = False,
) -> None:
    """Grade a bench's stored episodes again, with the environment as it is now; nothing is asked again."""
    from envkit.store import RunFolder
    from envkit.studies.rescore import rescore as grade_again

    with live() as display, interruptible() as go_on:
        backend = proved_backend(sandbox, False, display)
        again = grade_again(RunFolder.open(run), root, backend, display, go_on, command_line())
    board = write_board(again.run.path, [again.run.path])
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
    machine: Machine = DEFAULT_MACHINE,
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
    model: Annotated[str, typer.Argument(help="Part of a model's id; all, if left out.")] = "",
    table: Prices = None,
    as_json: Json = False,
) -> None:
    """List the price table: dollars per million tokens, and per hour of machines."""
    from envkit.prices import load_prices

    found = load_prices(table)
    models = {name: price for name, price in sorted(found.models.items()) if model in name}
    if not models and model:
        raise UsageError(f"no model in the table of {found.date} has {model!r} in its id")
    if as_json:
        rows = {n: {"input": p.input, "output": p.output, "cached": p.cached} for n, p in models.items()}
        emit({"date": found.date, "source": found.source, "models": rows, "machines": dict(found.machines)})
        return
    caption = f"$ per million tokens, {found.date}: {found.source}"
    shown = Table("model", "input", "output", "cached", "source", box=None, caption=caption)
    for name, price in models.items():
        cached = "" if price.cached is None else f"{price.cached:g}"
        note = escape(found.notes.get(name, ""))
        shown.add_row(escape(name), f"{price.input:g}", f"{price.output:g}", cached, note)
    out.print(shown)
    if not model:
        hours = ", ".join(f"{name} ${usd:g}" for name, usd in sorted(found.machines.items()))
        out.print(f"per hour: {hours}", markup=False)


def _model(given: str) -> str:
    from envkit.models import DEFAULT_MODEL

    return given or DEFAULT_MODEL


def _run(
    spec: BenchSpec, sandbox: str, root: Path, prices: Path | None, as_json: bool, *, board: bool = True
) -> None:
    """Start a bench and see it through."""
    from envkit.studies.bench import start

    with live() as display:
        backend = proved_backend(sandbox, False, display)
        run = start(root, spec, backend=backend, display=display, command=command_line(), prices=prices)
        display.say(f"run folder: {escape(str(run.path))}")
        pages, stopped = _go_on(run, backend, display)
    _said(run, pages, stopped, as_json, board=board)


def _resume(folder: Path, sandbox: str, as_json: bool) -> None:
    from envkit.store import RunFolder

    with live() as display:
        backend = proved_backend(sandbox, False, display)
        run = RunFolder.open(folder)
        pages, stopped = _go_on(run, backend, display)
    _said(run, pages, stopped, as_json)


def _go_on(run: RunFolder, backend: SandboxBackend, display: Display) -> tuple[list[Path], bool]:
    from envkit.studies.bench import Bench

    with interruptible() as go_on:
        return Bench(run, backend, display, go_on).run(), not go_on()


def _said(run: RunFolder, pages: Sequence[Path], stopped: bool, as_json: bool, *, board: bool = True) -> None:
    """Say what a bench has found."""
    page = write_board(run.path, [run.path]) if board else None
    for report in pages:
        done(run.path, report, as_json and len(pages) == 1, stopped=stopped)
    if as_json and len(pages) > 1:
        emit({"run": str(run.path), "reports": [str(report) for report in pages], "stopped": stopped})
    if not as_json:
        if page:
            out.print(f"leaderboard: {page}", soft_wrap=True, markup=False)
        if stopped:
            out.print(f"go on with: envkit bench --resume {run.path}", soft_wrap=True, markup=False)


def write_board(
    output: Path,
    runs: Sequence[Path],
    machine: str = DEFAULT_MACHINE,
    prices: Path | None = None,
    against: str | None = None,
) -> Path:
    """Write the leaderboard of some runs into a folder; returns the page's path."""
    from envkit.bench.board import make_board
    from envkit.bench.leaderboard import write_leaderboard
    from envkit.bench.report import load_reports
    from envkit.prices import load_prices

    reports = [report for run in runs for report in load_reports(run)]
    return write_leaderboard(make_board(reports, load_prices(prices), machine, against), output)
