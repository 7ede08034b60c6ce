"""`envkit study list` and `envkit study claim`: test claims about LoRA and RL on small models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from envkit.cli.options import (
    Json,
    SandboxName,
    complete_models,
    complete_studies,
    exit_if_stopped,
    require_at_least,
)
from envkit.cli.output import emit, out
from envkit.runtime.plain import encode
from envkit.studies.grid import run as grid_run
from envkit.studies.grid.run import STUDIES_ROOT

Budget = Annotated[
    str, typer.Option(metavar="NAME", help="Sizes: smoke, cpu, gpu, or a TOML file of your own.")
]
StudiesRoot = Annotated[
    Path,
    typer.Option("--root", metavar="FOLDER", help="Where the grids are; each budget has a folder in it."),
]


def list_(budget: Budget = "cpu", root: StudiesRoot = STUDIES_ROOT, as_json: Json = False) -> None:
    """List the claims, and how much of each is measured."""
    from rich.table import Table

    states = grid_run.list_studies(budget, root=root)
    if as_json:
        emit([encode(state) for state in states])
        return
    table = Table("Study", "Claim", f"Measured ({budget})", box=None)
    for state in states:
        table.add_row(state.name, escape(state.claim), f"{state.parts - state.missing} of {state.parts}")
    out.print(table)


def claim(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A name from `envkit study list`.", autocompletion=complete_studies
        ),
    ],
    budget: Budget = "cpu",
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", help="Training seeds of each arm. Default: the budget's. More can follow."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The base. Default: the budget's.", autocompletion=complete_models
        ),
    ] = None,
    no_measuring: Annotated[
        bool, typer.Option("--no-measuring", help="Only judge what is measured already, and write the page.")
    ] = False,
    benchmark: Annotated[
        str,
        typer.Option(
            metavar="FORMAT:PATH",
            help="Tasks that other models have answered, for the study frontier: the output of "
            "benchmarks/debugbench_half.py, for example.",
        ),
    ] = "",
    sandbox: SandboxName = "auto",
    root: StudiesRoot = STUDIES_ROOT,
    as_json: Json = False,
) -> None:
    """Test a claim about LoRA or RL on small models, and judge it: HELD, FAILED or UNDECIDED.

    Claims share their cells: each arm is trained once with each seed. Stopped, the same command continues.
    """
    if seeds is not None:
        require_at_least(1, seeds=seeds)
    result = grid_run.study(
        name,
        budget=budget,
        model=model,
        seeds=seeds,
        measure=not no_measuring,
        benchmark=benchmark,
        root=root,
        sandbox=sandbox,
    )
    if as_json:
        emit({"study": name, "page": str(result.page or ""), "found": encode(result.found)})
    elif result.found is not None:
        out.print(f"{name}: {result.found.verdict}", style="bold", markup=False)
        for sentence in result.found.sentences:
            out.print(sentence, markup=False, soft_wrap=True)
        out.print(f"page: {result.page}", markup=False, soft_wrap=True)
    exit_if_stopped(result.stopped_by)
