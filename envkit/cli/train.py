"""Commands that train: demo, train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from envkit import runs
from envkit.cli.options import (
    Json,
    Resume,
    Root,
    SandboxName,
    Split,
    command_line,
    complete_controls,
    complete_environments,
    complete_trackers,
    exit_if_stopped,
    print_reports,
    reports_as_data,
    require_no_settings,
    require_none,
    unless,
)
from envkit.cli.output import emit, out
from envkit.errors import UsageError
from envkit.models import SHORT_MINUTES
from envkit.runs.common import RUNS
from envkit.training.trackers import DEFAULT as DEFAULT_TRACKERS

Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="TOML file of training settings (see TrainConfig).")
]
Tasks = Annotated[
    Path | None,
    typer.Option("--tasks", metavar="FILE", help="Tasks to train on. Default: the environment's own."),
]
Heldout = Annotated[
    Path | None,
    typer.Option("--heldout", metavar="FILE", help="Tasks to measure on. Default: the environment's own."),
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="Base model: an id, a folder or a hub id.")
]


#: One turn, which ends with the first block of code: the untouched model explains it at length. A block
#: without the language's name, after other text, would end as it opens; none of 276 answers had one.
_ONE_TURN: Final[Mapping[str, object]] = {"max_turns": 1, "stop_strings": ["\n```\n"]}
#: Long enough for every known answer of sql-desk, which have at most 37 tokens.
_SQL_TOKENS: Final = 64


def demo_arguments(minutes: float) -> dict[str, Any]:
    """Arguments of `envkit.runs.train` for a demo: what it trains on, and how.

    A small model gains on short answers within minutes. Repairs of whole functions are long: on two cores,
    they take the larger model, and ten minutes or more to show anything.
    """
    if minutes < SHORT_MINUTES:
        small_steps = {"num_generations": 8, "groups_per_step": 8, "sft_batch_size": 6}
        config = {**_ONE_TURN, "max_completion_length": _SQL_TOKENS, **small_steps}
        return {"environments": "sql-desk", "config": config}
    return {"environments": "code-editor", "config": dict(_ONE_TURN), "max_task_chars": 500}


def demo(
    minutes: Annotated[
        float, typer.Option(metavar="MINUTES", help="Time budget after set-up; sizes follow from it.")
    ] = 25.0,
    seed: Annotated[int, typer.Option(metavar="SEED", help="Seed of training's random draws.")] = 0,
    model: Model = None,
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Train a small model and report, in one go: sql-desk below 10 minutes, code-editor from there on."""
    result = runs.train(
        **demo_arguments(minutes), minutes=minutes, seeds=seed, model=model, root=root, command=command_line()
    )
    _print(result, as_json)


def train(
    resume: Resume = None,
    config: Config = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Environment: a name from `envkit list`; NAME@HARNESS lets an agent program play. Repeat to "
            "train one adapter on several. Default: the config's mix, or code-editor.",
            autocompletion=complete_environments,
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="Time budget after set-up, shared by all seeds. It chooses the number of held-out tasks, "
            "sft_examples, groups_per_step and max_steps. Default: the config's sizes.",
        ),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            metavar="SEED",
            help="Seed of training's random draws. Repeat to train an adapter per seed, side by side. "
            "Default: the config's, or 0.",
        ),
    ] = None,
    tasks: Tasks = None,
    heldout: Heldout = None,
    split: Split = "heldout",
    max_task_chars: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Train and measure on short tasks only, whose prompt and files have at most N characters.",
        ),
    ] = None,
    model: Model = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="An adapter that RL begins with, such as another run's sft, in place of a warm start.",
        ),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What of the model is trained: LoRA on all-linear, attention or mlp layers; steering, "
            "one vector for each layer; or full, all linear layers. Default: the config's, or all-linear.",
            autocompletion=complete_controls,
        ),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="Trainer that takes the steps: envkit or trl.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="Engine that samples: torch or vllm.")
    ] = None,
    sandbox: SandboxName = "auto",
    unsafe: Annotated[bool, typer.Option("--unsafe", help="Accept a sandbox that does not isolate.")] = False,
    unaudited: Annotated[
        bool, typer.Option("--unaudited", help="Accept an environment without a certificate.")
    ] = False,
    no_evaluation: Annotated[
        bool, typer.Option("--no-evaluation", help="Only train; measure later with `envkit bench`.")
    ] = False,
    tracker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Experiment tracker to log to: tensorboard, wandb, mlflow or trackio. Repeat to log to "
            "several. Default: tensorboard; of a resumed run, the same again.",
            autocompletion=complete_trackers,
        ),
    ] = None,
    sft_only: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Only imitate the oracle on train tasks, as the warm start does, and write the adapter to "
            "this folder, which must not exist. No RL follows, and nothing is measured.",
        ),
    ] = None,
    sft_examples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --sft-only: oracle answers to imitate; at least one batch (12 by default).",
        ),
    ] = None,
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Fine-tune a small model with LoRA RL, and report it before and after on held-out tasks."""
    if sft_only is not None:
        require_none(
            "--sft-only only imitates, without RL and without a run",
            {
                "resume": resume,
                "minutes": minutes,
                "seed": seed,
                "heldout": heldout,
                "split": unless(split, "heldout"),
                "warm_start": warm_start,
                "control": control,
                "backend": backend,
                "engine": engine,
                "unsafe": unsafe or None,
                "unaudited": unaudited or None,
                "no_evaluation": no_evaluation or None,
                "tracker": tracker,
                "root": unless(root, RUNS),
            },
        )
        _sft(sft_only, config, sft_examples, env or [], tasks, max_task_chars, model, sandbox, as_json)
        return
    if sft_examples is not None:
        raise UsageError("--sft-examples is for --sft-only; else, set sft_examples in the file of --config")
    if resume is not None:
        require_no_settings(
            root,
            env=env,
            config=config,
            minutes=minutes,
            seed=seed,
            tasks=tasks,
            heldout=heldout,
            split=unless(split, "heldout"),
            max_task_chars=max_task_chars,
            model=model,
            warm_start=warm_start,
            control=control,
            backend=backend,
            engine=engine,
            no_evaluation=no_evaluation or None,
            unaudited=unaudited or None,
        )
        result = runs.resume_train(resume, sandbox=sandbox, allow_unsafe=unsafe, trackers=tracker or None)
        _print(result, as_json)
        return
    result = runs.train(
        env or None,
        config=config,
        minutes=minutes,
        seeds=seed,
        tasks=tasks,
        heldout_tasks=heldout,
        split=split,
        max_task_chars=max_task_chars,
        model=model,
        warm_start=warm_start,
        control=control,
        backend=backend,
        engine=engine,
        sandbox=sandbox,
        allow_unsafe=unsafe,
        allow_unaudited=unaudited,
        evaluate=not no_evaluation,
        trackers=tracker or DEFAULT_TRACKERS,
        root=root,
        command=command_line(),
    )
    _print(result, as_json)


def _print(result: runs.TrainResult, as_json: bool) -> None:
    stopped = result.stopped_by is not None
    if as_json:
        reports = reports_as_data(result.reports)
        emit({"run": str(result.run), "stopped": stopped, "reports": reports})
    else:
        print_reports(result.run, result.reports)
        if stopped:
            out.print(f"continue with: envkit train --resume {result.run}", soft_wrap=True, markup=False)
    exit_if_stopped(result.stopped_by)


def _sft(
    output: Path,
    config: Path | None,
    examples: int | None,
    env: list[str],
    tasks: Path | None,
    max_task_chars: int | None,
    model: str | None,
    sandbox: str,
    as_json: bool,
) -> None:
    if len(env) > 1:
        raise UsageError("--sft-only imitates on one environment; leave out all --env but one")
    result = runs.sft(
        output,
        environment=env[0] if env else None,
        config=config,
        examples=examples,
        tasks=tasks,
        max_task_chars=max_task_chars,
        model=model,
        sandbox=sandbox,
    )
    losses = result.losses
    if as_json:
        ends = {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}
        adapter = None if result.adapter is None else str(result.adapter)
        emit({"adapter": adapter, "steps": len(losses), "stopped": adapter is None, **ends})
    elif result.adapter is not None:
        ends_text = f"loss {losses[0]:.3f} -> {losses[-1]:.3f}"
        out.print(f"{len(losses)} steps, {ends_text}; adapter: {result.adapter}", markup=False)
    else:
        out.print("stopped before the last step; no adapter is written")
    exit_if_stopped(result.stopped_by)
