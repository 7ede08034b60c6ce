"""`envkit bench`: measure agents on held-out tasks, or grade their episodes again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from envkit.cli.options import (
    Device,
    Json,
    Limit,
    Machine,
    MaxTaskChars,
    Prices,
    Resume,
    Root,
    SandboxName,
    Split,
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
from envkit.cli.output import emit, out
from envkit.errors import UsageError
from envkit.runs import measuring
from envkit.runs.common import RUNS
from envkit.runs.results import BenchResult, EvalResult, Report
from envkit.runtime.files import read_settings

_TASKS_HELP = (
    "Held-out tasks: a file, or FORMAT:PATH of a published benchmark. Default: the environment's own."
)
_ADAPTER_HELP = "A trained adapter's folder, or a training run's, for its newest checkpoint."
_TURNS_HELP = (
    "Actions per episode, at most. Default: as the adapter was trained, else the environment's own number."
)
_ONE_OF = (
    "give one of: a spec; --agent, --model or --system for one agent; --adapter, --card and --recorded for "
    "several; --resume RUN; --rescore RUN"
)

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
    rescore: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Grade a run's stored episodes again, with the environment as it is now. No agent is asked "
            "again.",
            autocompletion=complete_runs,
        ),
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Measure one agent alone: model, oracle, no-op, or a baseline, such as enumerate.",
        ),
    ] = None,
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
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Base model: an id, a folder or a hub id. Without rows, it is measured alone.",
        ),
    ] = None,
    system: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Measure one model alone with the system message in this text file, such as `envkit study "
            "prompt` writes. Default: the environment's own.",
        ),
    ] = None,
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
        typer.Option(
            metavar="N",
            help="Show one model N solved train tasks first (few-shot). Beside others: add such a row, of "
            "the base model.",
        ),
    ] = None,
    device: Device = None,
    prices: Prices = None,
    machine: Machine = None,
    sandbox: SandboxName = "auto",
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Measure agents on held-out tasks: one alone, or several side by side with a leaderboard.

    One: by --agent, --model or --system; --adapter beside --agent model measures only that adapter.

    Several: from a spec, or by --adapter, --card and --recorded. The options add the controls oracle and
    no-op, and the base model of the adapters. Either way, the environment's baselines are added.
    """
    rows: dict[str, Any] = {"adapter": adapter, "card": card, "recorded": recorded}
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
    money = {"budget_usd": budget_usd, "prices": prices, "machine": machine}
    is_one = agent is not None or system is not None
    has_agents = is_one or any(rows.values())
    sources = (spec is not None) + (resume is not None) + (rescore is not None)
    if sources + has_agents != 1 and not (model is not None and sources + has_agents == 0):
        raise UsageError(_ONE_OF)
    if rescore is not None:
        require_none("--rescore grades the episodes that a run holds", {**given, **money})
        _rescore(rescore, sandbox, root, as_json)
        return
    if spec is not None:
        require_none("the spec holds these settings", given)
    if resume is not None:
        require_no_settings(root, **given, prices=prices)
        result = measuring.resume_bench(resume, budget_usd=budget_usd, machine=machine, sandbox=sandbox)
        _print_run(result, result.reports, as_json, result.leaderboard, result.refused)
        return
    where: dict[str, Any] = {"sandbox": sandbox, "root": root, "command": command_line()}
    if "env" in given:
        given["environment"] = given.pop("env")
    if is_one or (spec is None and not has_agents):
        require_none("one agent is measured alone", {"card": card, "recorded": recorded, **money})
        if len(adapter or ()) > 1:
            raise UsageError("one agent has one adapter; to compare several, leave out --agent and --system")
        one = measuring.evaluate(
            agent=agent or "model",
            adapter=adapter[0] if adapter else None,
            system="" if system is None else _text_of(system),
            **given,
            **where,
        )
        _print_run(one, (one.report,), as_json)
        return
    result = measuring.bench(
        spec
        or measuring.bench_spec(adapters=adapter or (), cards=card or (), recorded=recorded or (), **given),
        **money,
        **where,
    )
    _print_run(result, result.reports, as_json, result.leaderboard, result.refused)


def _rescore(run: Path, sandbox: str, root: Path, as_json: bool) -> None:
    result = measuring.rescore(run, sandbox=sandbox, root=root, command=command_line())
    if as_json:
        emit({"run": str(result.run), "leaderboard": str(result.leaderboard), "changed": result.changed})
    else:
        for change in result.changed[:20]:
            out.print(str(change), markup=False)
        out.print(f"{len(result.changed)} of {result.episodes} episodes changed")
        out.print(f"leaderboard: {result.leaderboard}", soft_wrap=True, markup=False)
    exit_if_stopped(result.stopped_by)


def _print_run(
    result: BenchResult | EvalResult,
    reports: tuple[Report, ...],
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
