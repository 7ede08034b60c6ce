"""`envkit prompt`: search for a better system message."""

from __future__ import annotations

from typing import Annotated

import typer

from envkit import api
from envkit.api.common import DEFAULT_ENVIRONMENT, RUNS
from envkit.benchmark.visible_text import visible
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
from envkit.errors import UsageError
from envkit.plain import encode
from envkit.studies.prompt_sizes import PromptSizes

_SIZES = PromptSizes()


def prompt(
    config: Config = None,
    resume: Resume = None,
    env: EnvName = DEFAULT_ENVIRONMENT,
    rounds: Annotated[int, typer.Option(metavar="N", help="Rounds of rewriting.")] = _SIZES.rounds,
    rewritings: Annotated[
        int, typer.Option(metavar="N", help="New messages in each round.")
    ] = _SIZES.rewritings,
    tasks_per_round: Annotated[
        int, typer.Option(metavar="N", help="Train tasks that each message plays in a round.")
    ] = _SIZES.tasks_per_round,
    checked: Annotated[
        int, typer.Option(metavar="N", help="Fresh train tasks to compare the last message on.")
    ] = _SIZES.checked,
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
        fixed: dict[str, object] = {
            "CONFIG": config,
            "--env": None if env == DEFAULT_ENVIRONMENT else env,
            "--rounds": None if rounds == _SIZES.rounds else rounds,
            "--rewritings": None if rewritings == _SIZES.rewritings else rewritings,
            "--tasks-per-round": None if tasks_per_round == _SIZES.tasks_per_round else tasks_per_round,
            "--checked": None if checked == _SIZES.checked else checked,
            "--seed": seed,
            "--tasks": tasks,
            "--max-task-chars": max_task_chars,
            "--model": model,
            "--root": None if root == RUNS else root,
        }
        if given := [name for name, value in fixed.items() if value is not None]:
            raise UsageError(f"--resume continues a run with its own settings; leave out {', '.join(given)}")
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
        out.print(visible(result.found.system), markup=False, emoji=False, soft_wrap=True)
        for sentence in result.found.sentences:
            out.print(sentence, markup=False, soft_wrap=True)
    exit_if_stopped(result.stopped_by)
