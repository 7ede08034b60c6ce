"""`envkit prompt`: search for a better system message."""

from __future__ import annotations

from typing import Annotated

import typer

from envkit import api
from envkit.api.common import DEFAULT_ENVIRONMENT, RUNS
from envkit.cli.options import (
    EnvName,
    Json,
    MaxTaskChars,
    Resume,
    Root,
    SandboxName,
    command_line,
    exit_if_stopped,
)
from envkit.cli.output import emit, out
from envkit.cli.train import Config, Model, Tasks
from envkit.plain import encode


def prompt(
    config: Config = None,
    resume: Resume = None,
    env: EnvName = DEFAULT_ENVIRONMENT,
    rounds: Annotated[int, typer.Option(metavar="N", help="Rounds of rewriting.")] = 4,
    rewritings: Annotated[int, typer.Option(metavar="N", help="New messages in each round.")] = 3,
    tasks_per_round: Annotated[
        int, typer.Option(metavar="N", help="Train tasks that each message plays in a round.")
    ] = 24,
    checked: Annotated[
        int, typer.Option(metavar="N", help="Fresh train tasks to compare the last message on.")
    ] = 64,
    seed: Annotated[
        int | None,
        typer.Option(metavar="SEED", help="Which train tasks are drawn. Default: the config's, or 0."),
    ] = None,
    tasks: Tasks = None,
    max_task_chars: MaxTaskChars = None,
    model: Model = None,
    sandbox: SandboxName = "auto",
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Search for a better system message: the model rewrites its own, and the reward decides.

    Measure what it is worth on held-out tasks: envkit eval --system RUN/prompt.txt.
    """
    if resume is not None:
        result = api.resume_prompt_search(resume, sandbox=sandbox)
    else:
        result = api.search_prompt(
            env,
            config=config,
            rounds=rounds,
            rewritings=rewritings,
            tasks_per_round=tasks_per_round,
            checked=checked,
            seed=seed,
            tasks=tasks,
            max_task_chars=max_task_chars,
            model=model,
            sandbox=sandbox,
            root=root,
            command=command_line(),
        )
    if as_json:
        emit({"run": str(result.run), "found": encode(result.found)})
    elif result.found is not None:
        out.print(result.found.system, markup=False, soft_wrap=True)
        for sentence in result.found.sentences:
            out.print(sentence, markup=False, soft_wrap=True)
    exit_if_stopped(result.stopped_by)
