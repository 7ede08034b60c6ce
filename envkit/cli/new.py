"""The command that makes a new environment's package."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from envkit.cli.options import Json
from envkit.cli.ui import emit, out


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the environment, such as ticket-desk.")],
    into: Annotated[Path, typer.Option(help="Folder to make it in.")] = Path(),
    as_json: Json = False,
) -> None:
    """Make a package with a small environment that works, to be made your own."""
    from envkit.scaffold import commands, create

    folder = create(name, into)
    # A shell's own python may be another, which knows no envkit.
    then = [f"cd {shlex.quote(str(folder))}", *commands(name, shlex.quote(sys.executable))]
    if as_json:
        emit({"folder": str(folder), "next": then})
        return
    out.print(f"{folder}: a small environment that works. Next:", soft_wrap=True, markup=False)
    for command in then:
        out.print(f"    {command}", soft_wrap=True, markup=False)
