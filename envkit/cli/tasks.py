"""Commands on task files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from envkit.cli.inspect import Json
from envkit.cli.ui import emit, live, out

app = typer.Typer(no_args_is_help=True, help="Make and look at task files.")


@app.callback()
def tasks() -> None:
    """Keeps `mine` a subcommand while it is the only one."""


@app.command()
def mine(
    packages: Annotated[list[str], typer.Argument(metavar="PACKAGE...", help="Installed Python packages.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Task file to write; never overwritten.")],
    seed: Annotated[int, typer.Option(help="Same seed, same file.")] = 0,
    split: Annotated[str, typer.Option(help="train or heldout")] = "train",
    per_function: Annotated[int, typer.Option(min=1, help="Mutants kept per function, at most.")] = 8,
    as_json: Json = False,
) -> None:
    """Mine repair tasks from installed packages: real functions, one small mutation each."""
    from envkit import registry
    from envkit.mining.taskfile import digest, write_tasks
    from envkit.studies.tasksets import mine_packages

    with live() as display:
        found = mine_packages(
            packages, registry.sandbox_backend(), display, seed=seed, split=split, per_function=per_function
        )
    write_tasks(output, found, seed=seed)
    facts = {"tasks": len(found), "functions": len({task.source for task in found}), "digest": digest(found)}
    if as_json:
        emit({**facts, "file": str(output)})
    else:
        out.print(f"{facts['tasks']} tasks from {facts['functions']} functions -> {output}", soft_wrap=True)
