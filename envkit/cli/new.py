"""The command that creates a new environment's package."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from envkit.cli.options import Json
from envkit.cli.output import emit, out


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The environment's name, such as ticket-desk.")],
    into: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where its folder is made.", show_default="this folder")
    ] = Path(),
    service: Annotated[bool, typer.Option("--service", help="Around a web service.")] = False,
    as_json: Json = False,
) -> None:
    """Create a package with a small working environment, ready to be made your own."""
    from envkit.scaffold import commands, create

    folder = create(name, into, "service" if service else "program")
    # `python` in the user's shell may be another interpreter, without envkit.
    next_commands = [f"cd {shlex.quote(str(folder))}", *commands(name, shlex.quote(sys.executable))]
    if as_json:
        emit({"folder": str(folder), "next": next_commands})
        return
    out.print(f"{folder}: a small environment that works. Next:", soft_wrap=True, markup=False)
    for command in next_commands:
        out.print(f"    {command}", soft_wrap=True, markup=False)
