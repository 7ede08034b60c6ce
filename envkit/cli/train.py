"""Commands that train: demo, train, sft."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from envkit.cli.options import (
    DEFAULT_ENVIRONMENT,
    RUNS,
    EnvName,
    Json,
    Root,
    SandboxName,
    Unsafe,
    command_line,
    done,
    proved_backend,
)
from envkit.cli.ui import emit, interruptible, live, out
from envkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envkit.display import Display
    from envkit.env import Env
    from envkit.sandbox import SandboxBackend
    from envkit.train.config import TrainConfig
    from envkit.types import Task

Tasks = Annotated[Path | None, typer.Option("--tasks", help="File of tasks to train on; default: its own.")]
Heldout = Annotated[
    Path | None, typer.Option("--heldout", help="File of tasks to measure on; default: its own.")
]
Model = Annotated[str | None, typer.Option("--model", help="Model id, folder or hub id.")]


def demo(
    minutes: Annotated[float, typer.Option(help="Budget after set-up and mining.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """The whole way: mine tasks, warm-start, LoRA RL, before/after report. CPU is enough."""
    train(minutes=minutes, seed=[seed], root=root, as_json=as_json)


def train(
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of training settings.")] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(help="Environment from `envkit list`; several train one adapter. Default: code-editor."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget; sizes follow from it.")] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            help="Seed of everything; several train an adapter each, at once. Default: the file's, or 0."
        ),
    ] = None,
    tasks: Tasks = None,
    heldout: Heldout = None,
    model: Model = None,
    learner: Annotated[str | None, typer.Option("--backend", help="Whose trainer: envkit or trl.")] = None,
    engine: Annotated[str | None, typer.Option(help="Who samples: torch or vllm.")] = None,
    sandbox: SandboxName = "auto",
    unsafe: Unsafe = False,
    unaudited: Annotated[bool, typer.Option("--unaudited", help="Allow one without a certificate.")] = False,
    no_evaluation: Annotated[
        bool, typer.Option("--no-evaluation", help="Only train; `envkit bench` can measure later.")
    ] = False,
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Fine-tune a small model with LoRA RL and report it before and after on held-out tasks."""
    from envkit import registry
    from envkit.audit.certificate import require_certified
    from envkit.models import require_training
    from envkit.store import RunFolder

    require_training()
    from envkit.studies import before_after, seeds, study
    from envkit.studies.plan import require_minutes

    several = _distinct(seed or [])
    if minutes is not None:
        require_minutes(minutes, len(several))
    with live() as display:
        backend = proved_backend(sandbox, unsafe, display)
        if resume is not None:
            kept: dict[str, object] = {
                "env": env or None,
                "config": config,
                "minutes": minutes,
                "seed": seed or None,
                "tasks": tasks,
                "heldout": heldout,
            }
            kept |= {"model": model, "backend": learner, "engine": engine}
            kept |= {"no-evaluation": no_evaluation or None, "unaudited": unaudited or None}
            kept |= {"root": None if root == RUNS else root}
            if given := [f"--{name}" for name, value in kept.items() if value is not None]:
                raise UsageError(f"--resume goes on as the run began; leave out {', '.join(given)}")
            run = RunFolder.open(resume)
            kinds = [registry.environment(name) for name in study.environments_of(run)]
        else:
            kinds = _environments(env or [DEFAULT_ENVIRONMENT], tasks, heldout)
            if not unaudited:
                for kind in kinds:
                    require_certified(kind)
            first = several[0] if several else None
            settings = _settings(config, seed=first, model=model, backend=learner, engine=engine)
            # Before anything that takes time.
            study.require_checks(settings.shaping, kinds)
            if len(several) > 1:
                seeds.configurations(settings, several)
            found = {kind: _tasks(kind, tasks, heldout, backend, display) for kind in kinds}
            planned = study.prepare(
                settings,
                # Seeds share the budget.
                minutes and minutes / max(len(several), 1),
                {kind: own for kind, (own, _) in found.items()},
                {kind: own for kind, (_, own) in found.items()},
                backend=backend,
                display=display,
                command=command_line(),
                evaluate=not no_evaluation,
            )
            run = seeds.start(root, planned, several) if len(several) > 1 else study.start(root, planned)
        display.say(f"run folder: {escape(str(run.path))}")
        # Before this, Ctrl-C has nothing to save and stops at once.
        with interruptible() as go_on:
            work = (
                seeds.MultiSeedStudy if run.manifest.get("kind") == seeds.KIND else before_after.BeforeAfter
            )
            reports = work(run, kinds, backend, display, go_on).run()
            stopped = not go_on()
    done(run.path, reports, as_json, stopped=stopped)
    if stopped and not as_json:
        out.print(f"go on with: envkit train --resume {run.path}", soft_wrap=True, markup=False)


def sft(
    output: Annotated[Path, typer.Option("-o", "--output", help="Adapter folder to write; must not exist.")],
    config: Annotated[Path | None, typer.Option(help="TOML file of training settings.")] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Oracle answers to imitate; a batch, 12, at least.")
    ] = None,
    env: EnvName = DEFAULT_ENVIRONMENT,
    tasks: Tasks = None,
    model: Model = None,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Only the supervised warm start: imitate the oracle on train tasks, save the adapter."""
    from envkit import registry
    from envkit.models import require_training

    require_training()
    from envkit.studies.warm_start import warm_start

    if output.exists():
        raise UsageError(f"{output} exists; choose another folder, nothing is overwritten")
    with live() as display, interruptible() as go_on:
        settings = _settings(config, model=model, sft_examples=examples)
        backend = proved_backend(sandbox, False, display)
        kind = registry.environment(env)
        train_tasks, _ = _tasks(kind, tasks, None, backend, display, need_heldout=False)
        losses = warm_start(output, settings, kind, train_tasks, backend, display, go_on)
    if as_json:
        ends = {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}
        emit(
            {"adapter": str(output) if losses else None, "steps": len(losses), "stopped": not losses, **ends}
        )
    elif losses:
        ends = f"loss {losses[0]:.3f} -> {losses[-1]:.3f}"
        out.print(f"{len(losses)} steps, {ends}; adapter: {output}", markup=False)
    else:
        out.print("stopped before the end; no adapter is written")


def _environments(names: Sequence[str], train: Path | None, heldout: Path | None) -> list[type[Env]]:
    """The environments of a run.

    Raises:
        UsageError: one is named twice, or files of tasks are given for several.
    """
    from envkit import registry

    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"--env {twice} is given twice; name each environment once")
    own = {"checkpoints", "sft", "tasks", "tensorboard"}
    if len(names) > 1 and (clash := own.intersection(names)):
        raise UsageError(f"--env {min(clash)} has the name of a run's own folder; train on it alone")
    if len(names) > 1 and (train or heldout):
        raise UsageError("--tasks and --heldout are for one --env; several train on their own tasks")
    return [registry.environment(name) for name in names]


def _distinct(seeds: Sequence[int]) -> Sequence[int]:
    """The seeds as they are.

    Raises:
        UsageError: one is given twice.
    """
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise UsageError(f"--seed {twice[0]} is given twice; its two adapters would be one")
    return seeds


def _tasks(
    kind: type[Env],
    train_file: Path | None,
    heldout_file: Path | None,
    backend: SandboxBackend,
    display: Display,
    *,
    need_heldout: bool = True,
) -> tuple[Sequence[Task], Sequence[Task]]:
    from envkit import registry

    def load(file: Path | None, split: str) -> Sequence[Task]:
        return (
            registry.read_tasks_for(kind, file)
            if file
            else kind.make_tasks(split, sandbox=backend, display=display)
        )

    return load(train_file, "train"), load(heldout_file, "heldout") if need_heldout else ()


def _settings(path: Path | None, **given: Any) -> TrainConfig:
    """The configuration file with what the command line says on top."""
    from envkit.train.config import from_mapping, from_toml, to_mapping

    base = from_toml(path) if path is not None else from_mapping({}, "defaults")
    overrides = {key: value for key, value in given.items() if value is not None}
    return from_mapping({**to_mapping(base), **overrides}, "command line")
