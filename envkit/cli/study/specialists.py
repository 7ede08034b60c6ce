"""`envkit study specialists`: train what sends each request to the specialist of its task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from envkit.cli.options import Json, read_named, require_at_least
from envkit.cli.output import emit, out
from envkit.runtime.plain import encode
from envkit.studies.specialists import call as specialists_call
from envkit.studies.specialists.call import DEFAULT_PROMPTS, DEFAULT_TOKENS


def specialists(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=RUN", help="Training runs, by the model ids that their adapters are served under."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The router's file.")] = Path(
        "router.safetensors"
    ),
    prompts: Annotated[
        int, typer.Option(metavar="N", help="Tasks of each specialist to learn from and to measure on.")
    ] = DEFAULT_PROMPTS,
    layers: Annotated[
        int, typer.Option(metavar="N", help="The base's layers that read a prompt; 0 is a quarter of them.")
    ] = 0,
    tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens of a prompt that are read at most.")
    ] = DEFAULT_TOKENS,
    seed: Annotated[int, typer.Option(metavar="SEED", help="Which tasks are drawn.")] = 0,
    as_json: Json = False,
) -> None:
    """Train what sends each request to the specialist of its task, or to the base.

    It learns from the prompts that the specialists were trained on, and is measured on others.
    `envkit serve --router FILE` then offers the model id auto.
    """
    require_at_least(1, prompts=prompts, tokens=tokens)
    require_at_least(0, layers=layers)
    result = specialists_call.train_router(
        read_named("specialist", runs),
        output,
        prompts=prompts,
        layers=layers,
        tokens=tokens,
        seed=seed,
    )
    if as_json:
        emit({"router": str(result.path), "bytes": result.size_bytes, "study": encode(result.study)})
    else:
        _show(result)


def _show(result: specialists_call.RouterResult) -> None:
    from rich.table import Table

    from envkit.measure.number_text import share
    from envkit.studies.specialists.router import sentences

    study = result.study
    names = [sent.name for sent in study.sent]
    table = Table("prompts of", *map(escape, names), "base", "to itself", "to the base if unknown", box=None)
    for sent in study.sent:
        unknown = "" if sent.unknown is None else share(sent.unknown)
        counts = (str(sent.counts[name]) for name in (*names, ""))
        table.add_row(escape(sent.name), *counts, share(sent.own), unknown)
    out.print(table)
    for sentence in sentences(study):
        out.print(sentence, markup=False, soft_wrap=True)
    out.print(f"router: {result.path}, {result.size_bytes:,} bytes", markup=False, soft_wrap=True)
