"""Commands that measure: eval, bench, rescore, leaderboard, prices."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from envkit import api
from envkit.api.common import RUNS
from envkit.api.measuring import DEFAULT_TEMPERATURE
from envkit.benchmark.spec import DEFAULT_SAMPLES
from envkit.cli.options import (
    Json,
    Limit,
    MaxTaskChars,
    Resume,
    Root,
    RunArgument,
    Samples,
    SandboxName,
    Split,
    Temperature,
    command_line,
    complete_cards,
    complete_environments,
    complete_runs,
    exit_if_stopped,
    print_reports,
    reports_as_data,
    require_no_settings,
    require_none,
    unless,
)
from envkit.cli.output import emit, out, print_table
from envkit.errors import UsageError
from envkit.files import read_settings

_TASKS_HELP = (
    "Held-out tasks: a file, or FORMAT:PATH of a published benchmark. Default: the environment's own."
)
_ADAPTER_HELP = "A trained adapter's folder, or a training run's, for its newest checkpoint."
_TURNS_HELP = (
    "Actions per episode, at most. Default: as the adapter was trained, else the environment's own number."
)
_MODEL_HELP = "Base model: an id, a folder or a hub id."

Played = Annotated[
    str | None,
    typer.Option(
        "--env",
        metavar="NAME",
        help="Environment: a name from `envkit list`; NAME@HARNESS lets an agent program play. Default: the "
        "one that the adapter was trained on, else code-editor.",
        autocompletion=complete_environments,
    ),
]
Stops = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Text that ends a turn of a local model. Repeat for more. Default: as the adapter was trained.",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        help="Context length limit of a local model. Default: as the adapter was trained, else by the model.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Device of local models: cpu, or cuda for one GPU. Default: cpu."),
]
Shots = Annotated[
    int,
    typer.Option(
        metavar="N", help="Solved train tasks that the model sees first (few-shot).", show_default=False
    ),
]
Prices = Annotated[
    Path | None, typer.Option("--prices", metavar="FILE", help="TOML of prices, on top of envkit's own.")
]
Machine = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Machine of `envkit prices` whose hourly price local models pay. Default: cpu-2-cores, if they "
        "ran on two cores without a GPU, or half of it for one core.",
    ),
]


def evaluate(
    agent: Annotated[
        str, typer.Option(metavar="NAME", help="model, oracle, no-op, or a baseline, such as enumerate.")
    ] = "model",
    env: Played = None,
    tasks: Annotated[
        str, typer.Option("--tasks", "--heldout", metavar="FILE", help=_TASKS_HELP, show_default=False)
    ] = "",
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help=_MODEL_HELP, show_default=False)
    ] = "",
    adapter: Annotated[Path | None, typer.Option(metavar="FOLDER", help=_ADAPTER_HELP)] = None,
    limit: Limit = None,
    split: Split = "heldout",
    max_task_chars: MaxTaskChars = None,
    samples: Samples = DEFAULT_SAMPLES,
    temperature: Temperature = DEFAULT_TEMPERATURE,
    max_turns: Annotated[
        int | None,
        typer.Option(metavar="N", help=_TURNS_HELP),
    ] = None,
    max_completion_length: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS", help="Tokens per turn, at most. Default: as the adapter was trained, else 384."
        ),
    ] = None,
    stop_strings: Stops = None,
    max_context_length: Context = None,
    shots: Shots = 0,
    system: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text file with the model's system message, such as envkit prompt writes. Default: the "
            "environment's own.",
        ),
    ] = None,
    device: Device = None,
    sandbox: SandboxName = "auto",
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Evaluate one agent on held-out tasks: pass@1 and pass@k with intervals."""
    result = api.evaluate(
        env or "",
        agent=agent,
        model=model,
        adapter=adapter,
        tasks=tasks,
        limit=limit,
        split=split,
        max_task_chars=max_task_chars,
        samples=samples,
        temperature=temperature,
        max_turns=max_turns,
        max_completion_length=max_completion_length,
        stop_strings=stop_strings,
        max_context_length=max_context_length,
        shots=shots,
        system="" if system is None else _text_of(system),
        device=device or "cpu",
        sandbox=sandbox,
        root=root,
        command=command_line(),
    )
    _print_run(result, (result.report,), as_json)


def _text_of(file: Path) -> str:
    """Text of a file.

    Raises:
        UsageError: it cannot be read, is empty or is not UTF-8.
    """
    try:
        text = read_settings(file).strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error})") from error
    if not text:
        raise UsageError(f"{file} is empty; expected a system message")
    return text


def bench(
    spec: Annotated[
        Path | None, typer.Argument(metavar="SPEC", help="TOML file of environments and agents.")
    ] = None,
    resume: Resume = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help=f"{_ADAPTER_HELP} Repeat for more rows."),
    ] = None,
    card: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CARD",
            help="API model: a card from `envkit list`, or a card's file. Repeat.",
            autocompletion=complete_cards,
        ),
    ] = None,
    recorded: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Recorded outputs to grade: a model whose outputs the benchmark's file holds, or a file of "
            "outputs. Repeat for more.",
        ),
    ] = None,
    budget_usd: Annotated[
        float | None,
        typer.Option(
            metavar="DOLLARS",
            help="Most that all API calls may cost, earlier ones included. Default: the spec's, or 1.",
        ),
    ] = None,
    env: Played = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", "--heldout", metavar="FILE", help=_TASKS_HELP)
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help=_MODEL_HELP)] = None,
    limit: Limit = None,
    split: Split = "heldout",
    max_task_chars: MaxTaskChars = None,
    samples: Annotated[int | None, typer.Option(metavar="N", help="Episodes per task. Default: 4.")] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Sampling temperature. Default: 0.7.")
    ] = None,
    max_turns: Annotated[
        int | None,
        typer.Option(metavar="N", help=_TURNS_HELP),
    ] = None,
    max_completion_length: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Tokens per turn, at most. Default: as the adapter was trained, else the card's, else 384.",
        ),
    ] = None,
    stop_strings: Stops = None,
    max_context_length: Context = None,
    shots: Annotated[
        int | None,
        typer.Option(metavar="N", help="Add a row: the base model, shown N solved train tasks first."),
    ] = None,
    device: Device = None,
    prices: Prices = None,
    machine: Machine = None,
    sandbox: SandboxName = "auto",
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Compare agents on the same held-out tasks; write a report per environment, and a leaderboard.

    The agents come from a spec, or from --adapter, --card and --recorded. The options add the controls
    oracle and no-op, and the base model of the adapters. Either way, the environment's baselines are added.
    """
    if (spec is not None) + (resume is not None) + any((adapter, card, recorded)) != 1:
        raise UsageError("give one of: a spec, --resume RUN, or rows by --adapter, --card and --recorded")
    options: dict[str, Any] = {
        "env": env,
        "tasks": tasks,
        "model": model,
        "limit": limit,
        "split": unless(split, "heldout"),
        "max_task_chars": max_task_chars,
        "samples": samples,
        "temperature": temperature,
        "max_turns": max_turns,
        "max_completion_length": max_completion_length,
        "stop_strings": tuple(stop_strings) if stop_strings else None,
        "max_context_length": max_context_length,
        "shots": shots,
        "device": device,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if spec is not None:
        require_none("the spec holds these settings", given)
    if resume is not None:
        require_no_settings(root, **given, prices=prices)
        result = api.resume_bench(resume, budget_usd=budget_usd, machine=machine, sandbox=sandbox)
    else:
        if "env" in given:
            given["environment"] = given.pop("env")
        result = api.bench(
            spec
            or api.bench_spec(adapters=adapter or (), cards=card or (), recorded=recorded or (), **given),
            budget_usd=budget_usd,
            prices=prices,
            machine=machine,
            sandbox=sandbox,
            root=root,
            command=command_line(),
        )
    _print_run(result, result.reports, as_json, result.leaderboard, result.refused)


def _print_run(
    result: api.BenchResult | api.EvalResult,
    reports: tuple[api.Report, ...],
    as_json: bool,
    leaderboard: Path | None = None,
    refused: UsageError | None = None,
) -> None:
    """Print what a run found.

    Raises:
        UsageError: a provider refused.
        typer.Exit: a signal stopped the run.
    """
    stopped = result.stopped_by is not None or refused is not None
    if as_json:
        board = {"leaderboard": str(leaderboard)} if leaderboard else {}
        emit({"run": str(result.run), "stopped": stopped, **board, "reports": reports_as_data(reports)})
    else:
        print_reports(result.run, reports)
        if leaderboard:
            out.print(f"leaderboard: {leaderboard}", soft_wrap=True, markup=False)
        if stopped:
            out.print(f"continue with: envkit bench --resume {result.run}", soft_wrap=True, markup=False)
    if refused is not None:
        raise refused
    exit_if_stopped(result.stopped_by)


def rescore(
    run: RunArgument,
    sandbox: SandboxName = "auto",
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Grade a bench's stored episodes again, with the environment as it is now. No agent is asked again."""
    result = api.rescore(run, sandbox=sandbox, root=root, command=command_line())
    if as_json:
        emit({"run": str(result.run), "leaderboard": str(result.leaderboard), "changed": result.changed})
    else:
        for change in result.changed[:20]:
            out.print(str(change), markup=False)
        out.print(f"{len(result.changed)} of {result.episodes} episodes changed")
        out.print(f"leaderboard: {result.leaderboard}", soft_wrap=True, markup=False)
    exit_if_stopped(result.stopped_by)


def leaderboard(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="Run folders of bench, eval, train or demo.", autocompletion=complete_runs
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the files are written.")
    ] = RUNS,
    machine: Machine = None,
    prices: Prices = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="ROW", help="Row that the others are compared with."),
    ] = None,
    unsolved_by: Annotated[
        str, typer.Option(metavar="ROW", help="Count only the tasks that this row never solved.")
    ] = "",
    seeds: Annotated[
        bool,
        typer.Option(
            "--seeds",
            help="Take rows together whose names are equal, or equal up to an ending like 'seed 1': one "
            "recipe, trained with several seeds.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Put the rows of runs on one board: solve rate, dollars per solved task, comparisons with intervals."""
    page = api.leaderboard(
        runs,
        output,
        machine=machine,
        prices=prices,
        against=against,
        unsolved_by=unsolved_by,
        seeds=seeds,
    )
    if as_json:
        emit({"leaderboard": str(page)})
    else:
        out.print(f"leaderboard: {page}", soft_wrap=True, markup=False)


def passk(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="Run folders of bench, eval, train or demo.", autocompletion=complete_runs
        ),
    ],
    row: Annotated[
        str | None, typer.Option(metavar="ROW", help="Row to look at. Default: each trained adapter's.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="ROW", help="Row to compare with. Default: the untouched model's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare rows by pass@k, before and after training, with as many samples as they have.

    RL may make rare solutions frequent: then it gains most at k = 1, and the untouched model comes closer
    with every further try. Or it solves what the untouched model never did.
    """
    from envkit.benchmark.passk import sentences, table_of

    found = api.pass_at_k(runs, row=row, against=against)
    if as_json:
        emit([{**asdict(one), "crossing": one.crossing} for one in found])
        return
    for one in found:
        print_table(table_of(one))
        for sentence in sentences(one):
            out.print(sentence, markup=False, soft_wrap=True)


def prices(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Part of a model's or machine's name. Default: all.", show_default=False
        ),
    ] = "",
    table: Prices = None,
    as_json: Json = False,
) -> None:
    """List prices: dollars per million tokens of models, and per hour of machines."""
    from rich.table import Table

    from envkit.prices import load_prices

    price_table = load_prices(table)
    models = {model: price for model, price in sorted(price_table.models.items()) if name in model}
    machines = {machine: usd for machine, usd in sorted(price_table.machines.items()) if name in machine}
    if not models and not machines:
        raise UsageError(f"no model or machine in the table of {price_table.date} has {name!r} in its name")
    if as_json:
        sources = {model: price_table.notes.get(model, price_table.source) for model in models}
        rows = {m: {**asdict(price), "source": sources[m]} for m, price in models.items()}
        emit({"date": price_table.date, "source": price_table.source, "models": rows, "machines": machines})
        return
    caption = f"$ per million tokens, {price_table.date}: {price_table.source}"
    listing = Table("model", "input", "output", "cached", "source", box=None, caption=caption)
    for model, price in models.items():
        cached = "" if price.cached is None else f"{price.cached:g}"
        note = escape(price_table.notes.get(model, ""))
        listing.add_row(escape(model), f"{price.input:g}", f"{price.output:g}", cached, note)
    if models:
        out.print(listing)
    if machines:
        hours = ", ".join(f"{machine} ${usd:g}" for machine, usd in machines.items())
        out.print(f"per hour: {hours}", markup=False)
