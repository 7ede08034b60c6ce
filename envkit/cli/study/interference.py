"""`envkit study interference`: measure whether one adapter for several environments costs any of them."""

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
from envkit.studies.interference import call as interference_call
from envkit.studies.interference.call import DEFAULT_MERGES


def interference(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="Training runs: one specialist for each environment, and those that trained on several.",
            autocompletion=complete_runs,
        ),
    ] = None,
    resume: Resume = None,
    merge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="Merge the specialists: linear, ties, dare_linear, cat (their exact sum), or none. Repeat. "
            f"Default: {', '.join(DEFAULT_MERGES)}.",
        ),
    ] = None,
    limit: Limit = None,
    split: Split = "heldout",
    max_task_chars: MaxTaskChars = None,
    samples: Samples = DEFAULT_SAMPLES,
    temperature: Temperature = DEFAULT_TEMPERATURE,
    max_turns: Annotated[
        int | None,
        typer.Option(metavar="N", help="Actions per episode. Default: as the joint adapter was trained."),
    ] = None,
    sandbox: SandboxName = "auto",
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Measure specialists, joint adapters and merged ones on every environment: a matrix with intervals.

    Does one adapter hold several tasks, or does one cost another? Each is compared with the environment's
    specialist, task by task, and HELD, FAILED or UNDECIDED says whether it is within 5 points everywhere.
    """
    if (resume is not None) == bool(runs):
        raise UsageError("give training runs, or --resume RUN")
    if resume is not None:
        require_no_settings(
            root,
            merge=merge,
            limit=limit,
            split=unless(split, "heldout"),
            max_task_chars=max_task_chars,
            samples=unless(samples, DEFAULT_SAMPLES),
            temperature=unless(temperature, DEFAULT_TEMPERATURE),
            max_turns=max_turns,
        )
        result = interference_call.resume_interference(resume, sandbox=sandbox)
    else:
        require_at_least(1, samples=samples)
        result = interference_call.interference(
            runs or [],
            merge=DEFAULT_MERGES if not merge else [] if merge == ["none"] else merge,
            limit=limit,
            split=split,
            max_task_chars=max_task_chars,
            samples=samples,
            temperature=temperature,
            max_turns=max_turns,
            sandbox=sandbox,
            root=root,
            command=command_line(),
        )
    if as_json:
        emit({"run": str(result.run), "page": str(result.page or ""), "matrix": encode(result.matrix)})
    elif result.matrix is not None:
        _show(result)
    exit_if_stopped(result.stopped_by)


def _show(result: interference_call.InterferenceResult) -> None:
    from envkit.studies.interference.table import differences_table, rates_table, sentences

    assert result.matrix is not None
    for content in (rates_table(result.matrix), differences_table(result.matrix)):
        print_table(content)
    for sentence in sentences(result.matrix):
        out.print(sentence, markup=False, soft_wrap=True)
    out.print(f"page: {result.page}", markup=False, soft_wrap=True)
