"""`envkit study controls`: compare ways of changing a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from envkit.cli.options import (
    Json,
    Limit,
    MaxTaskChars,
    Resume,
    Root,
    Samples,
    SandboxName,
    Split,
    Temperature,
    command_line,
    complete_environments,
    complete_models,
    complete_runs,
    exit_if_stopped,
    require_at_least,
    require_no_settings,
    unless,
)
from envkit.cli.output import emit, out, print_table
from envkit.errors import UsageError
from envkit.measure.spec import DEFAULT_SAMPLES
from envkit.runs.common import RUNS
from envkit.runs.measuring import DEFAULT_TEMPERATURE
from envkit.runtime.plain import encode
from envkit.studies.controls import call as controls_call
from envkit.studies.controls.call import DEFAULT_KL_TASKS


def controls(
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="ADAPTER",
            help="Training runs of one base, or adapters' folders, such as those of `envkit study steering`.",
            autocompletion=complete_runs,
        ),
    ] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            "--prompt",
            metavar="RUN",
            help="Run of `envkit study prompt`: a row of the base with that system message. Repeat for more.",
            autocompletion=complete_runs,
        ),
    ] = None,
    resume: Resume = None,
    env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment. Default: the one that the adapters were trained on.",
            autocompletion=complete_environments,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The base. Default: the one that the adapters name.",
            autocompletion=complete_models,
        ),
    ] = None,
    limit: Limit = None,
    split: Split = "heldout",
    max_task_chars: MaxTaskChars = None,
    samples: Samples = DEFAULT_SAMPLES,
    temperature: Temperature = DEFAULT_TEMPERATURE,
    max_turns: Annotated[
        int | None,
        typer.Option(metavar="N", help="Actions per episode. Default: as the first adapter was trained."),
    ] = None,
    kl_tasks: Annotated[
        int, typer.Option(metavar="N", help="Tasks on which the divergence from the base is measured.")
    ] = DEFAULT_KL_TASKS,
    sandbox: SandboxName = "auto",
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Compare ways of changing a model: solve rate, bytes, sampled tokens, divergence from the base.

    Marks the rows on the Pareto front: no other solves as much and costs no more in any respect.
    """
    if (resume is not None) == bool(adapters):
        raise UsageError("give adapters, or --resume RUN")
    if resume is not None:
        require_no_settings(
            root,
            prompt=prompts,
            env=env,
            model=model,
            limit=limit,
            split=unless(split, "heldout"),
            max_task_chars=max_task_chars,
            samples=unless(samples, DEFAULT_SAMPLES),
            temperature=unless(temperature, DEFAULT_TEMPERATURE),
            max_turns=max_turns,
            kl_tasks=unless(kl_tasks, DEFAULT_KL_TASKS),
        )
        result = controls_call.resume_controls(resume, sandbox=sandbox)
    else:
        require_at_least(1, samples=samples, kl_tasks=kl_tasks)
        result = controls_call.compare_controls(
            adapters or [],
            prompts=prompts or [],
            environment=env,
            model=model,
            limit=limit,
            split=split,
            max_task_chars=max_task_chars,
            samples=samples,
            temperature=temperature,
            max_turns=max_turns,
            kl_tasks=kl_tasks,
            sandbox=sandbox,
            root=root,
            command=command_line(),
        )
    if as_json:
        emit({"run": str(result.run), "page": str(result.page or ""), "found": encode(result.found)})
    elif result.found is not None:
        _show(result)
    exit_if_stopped(result.stopped_by)


def _show(result: controls_call.ControlResult) -> None:
    from envkit.studies.controls.table import sentences, table_of

    assert result.found is not None
    print_table(table_of(result.found))
    for sentence in sentences(result.found):
        out.print(sentence, markup=False, soft_wrap=True)
    out.print(f"page: {result.page}", markup=False, soft_wrap=True)
