"""`envkit study support`: ask before training whether RL has something to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from envkit import runs
from envkit.cli.options import Json, Root, SandboxName, TrainedEnv, command_line, exit_if_stopped
from envkit.cli.output import emit, out
from envkit.cli.train import Config, Model, Tasks
from envkit.runs.common import RUNS


def support(
    config: Config = None,
    env: TrainedEnv = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="SEED", help="Which train tasks are drawn. Default: the config's, or 0."),
    ] = None,
    tasks: Tasks = None,
    max_task_chars: Annotated[
        int | None,
        typer.Option(metavar="N", help="Only short tasks, whose prompt and files have at most N characters."),
    ] = None,
    model: Model = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="An adapter to test in place of the base."),
    ] = None,
    sandbox: SandboxName = "auto",
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Ask, before training, whether RL has something to learn from.

    Plays train tasks in groups, as a first step of training would, until it is decided whether some groups
    earn different rewards: only these teach. Ends with status 1 if there are too few.
    """
    result = runs.support(
        env,
        config=config,
        seed=seed,
        tasks=tasks,
        max_task_chars=max_task_chars,
        model=model,
        warm_start=warm_start,
        sandbox=sandbox,
        root=root,
        command=command_line(),
    )
    found = result.found
    if as_json:
        emit({"run": str(result.run), "support": None if found is None else found.as_data()})
    elif found is None:
        out.print("stopped before 8 tasks were played: nothing can be said", markup=False)
    else:
        for sentence in found.sentences:
            out.print(sentence, markup=False, soft_wrap=True)
    exit_if_stopped(result.stopped_by)
    if found is not None and found.can_start is False:
        raise typer.Exit(1)
