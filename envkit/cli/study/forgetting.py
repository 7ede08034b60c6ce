"""`envkit study forgetting`: measure how far an adapter has moved from its base."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from envkit.cli.options import (
    Device,
    Json,
    MaxTaskChars,
    SandboxName,
    complete_environments,
    require_at_least,
)
from envkit.cli.output import emit, out
from envkit.studies.forgetting import call as forgetting_call


def forgetting(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="An adapter's folder, or the run that trained it.")
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Text that is no task. Repeat for more. Default: --package."),
    ] = None,
    package: Annotated[
        str, typer.Option(metavar="NAME", help="Installed package whose docstrings are the text.")
    ] = "numpy",
    env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment that it plays. Default: what it was trained on, if its run is known.",
            autocompletion=complete_environments,
        ),
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Tasks to play. Default: the held-out ones.")
    ] = None,
    max_task_chars: MaxTaskChars = None,
    limit: Annotated[int, typer.Option(metavar="N", help="Number of passages, and of tasks.")] = 64,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The base model, if it is no longer where it was.")
    ] = None,
    device: Device = None,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Measure how far an adapter has moved from its base, on other text and on its own task.

    Nats per token of other text, with and without the adapter; and the KL divergence from the base on the
    adapter's own episodes.
    """
    require_at_least(1, limit=limit)
    found = forgetting_call.forgetting(
        adapter,
        texts=text or (),
        package=package,
        environment=env,
        tasks=tasks,
        max_task_chars=max_task_chars,
        limit=limit,
        model=model,
        device=device or "cpu",
        sandbox=sandbox,
    )
    if as_json:
        emit(asdict(found))
        return
    for sentence in found.sentences:
        out.print(sentence, markup=False, soft_wrap=True)
