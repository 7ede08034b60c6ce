"""`envkit study prompt`: search for a better system message."""

from __future__ import annotations

from typing import Annotated

import typer

from envkit import runs
from envkit.cli.options import (
    Json,
    MaxTaskChars,
    NoHarnessEnv,
    Resume,
    Root,
    SandboxName,
    command_line,
    exit_if_stopped,
    require_no_settings,
    unless,
)
from envkit.cli.output import emit, out
from envkit.cli.train import Config, Model, Tasks
from envkit.measure.visible_text import visible
from envkit.runs.common import RUNS
from envkit.runs.tools.prompt_sizes import PromptSizes
from envkit.runtime.plain import encode

_SIZES = PromptSizes()


def prompt(
    config: Config = None,
    resume: Resume = None,
    env: NoHarnessEnv = None,
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

    Measure what it is worth on held-out tasks: envkit bench --system RUN/prompt.txt.
    """
    if resume is not None:
        require_no_settings(
            root,
            config=config,
            env=env,
            rounds=unless(rounds, _SIZES.rounds),
            rewritings=unless(rewritings, _SIZES.rewritings),
            tasks_per_round=unless(tasks_per_round, _SIZES.tasks_per_round),
            checked=unless(checked, _SIZES.checked),
            seed=seed,
            tasks=tasks,
            max_task_chars=max_task_chars,
            model=model,
        )
        result = runs.resume_prompt_search(resume, sandbox=sandbox)
    else:
        result = runs.search_prompt(
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
