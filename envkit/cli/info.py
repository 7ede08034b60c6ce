"""Commands to start with: list installed parts, check this machine, create an environment's package."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.markup import escape

from envkit.cli.options import Json
from envkit.cli.output import emit, out
from envkit.errors import EnvkitError
from envkit.runtime import plugins

#: Packages that only local models need, to train or to sample.
_MODELS: Final = ("torch", "transformers", "peft", "trl")


def list_(as_json: Json = False) -> None:
    """List installed environments and sandboxes, scripted agents, cards of API models, and harnesses."""
    from envkit.agents.cards import shipped_cards
    from envkit.env.harness import shipped_harnesses
    from envkit.measure.spec import SCRIPTS

    found = {kind: plugins.names(kind) for kind in plugins.GROUPS}
    found |= {"script": sorted(SCRIPTS), "card": shipped_cards()}
    found["harness"] = shipped_harnesses()
    if as_json:
        emit(found)
        return
    for kind, names in found.items():
        out.print(f"[bold]{kind}[/]: {', '.join(names) or 'none'}")


def doctor(as_json: Json = False) -> None:
    """Check whether this machine is ready; print the command that mends what is not."""
    from rich.table import Table

    from envkit.models import DEFAULT_MODEL, KNOWN, is_fetched
    from envkit.sandbox.check import self_check
    from envkit.sandbox.choice import sandbox_backend

    rows: list[tuple[str, bool, str]] = [
        ("python", True, f"{platform.python_version()} on {platform.machine()}"),
        ("cores", True, str(len(os.sched_getaffinity(0)))),
    ]
    try:
        backend = sandbox_backend()
        findings = self_check(backend)
        failed = [f"{finding.name}: {finding.detail}" for finding in findings if not finding.ok]
        text = failed[0] if failed else f"{backend.name}, {len(findings)} checks pass"
        rows.append(("sandbox", not failed, text))
    except EnvkitError as error:
        rows.append(("sandbox", False, str(error)))
    for package in _MODELS:
        installed = find_spec(package) is not None
        missing = "only for models that run here; in envkit's clone: pip install --editable '.[train]'"
        rows.append((package, installed, "installed" if installed else missing))
    size = f"will be downloaded, {KNOWN[DEFAULT_MODEL].file_bytes // 10**6} MB"
    rows.append(("model", True, f"{DEFAULT_MODEL}: {'cached' if is_fetched(DEFAULT_MODEL) else size}"))
    ready = all(ok for name, ok, _ in rows if name not in _MODELS)
    if as_json:
        emit({"ready": ready, "checks": [{"name": n, "ok": ok, "detail": d} for n, ok, d in rows]})
    else:
        table = Table(show_header=False, box=None)
        for name, ok, detail in rows:
            no = "[yellow]no[/]" if name in _MODELS else "[red]no[/]"
            table.add_row("[green]ok[/]" if ok else no, name, escape(detail))
        out.print(table)
    if not ready:
        raise typer.Exit(1)


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The environment's name, such as ticket-desk.")],
    into: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where its folder is made.", show_default="this folder")
    ] = Path(),
    service: Annotated[bool, typer.Option("--service", help="Around a web service.")] = False,
    as_json: Json = False,
) -> None:
    """Create a package with a small working environment, ready to be made your own."""
    from envkit.env.scaffold import commands, create

    folder = create(name, into, "service" if service else "program")
    # `python` in the user's shell may be another interpreter, without envkit.
    next_commands = [f"cd {shlex.quote(str(folder))}", *commands(name, shlex.quote(sys.executable))]
    if as_json:
        emit({"folder": str(folder), "next": next_commands})
        return
    out.print(f"{folder}: a small environment that works. Next:", soft_wrap=True, markup=False)
    for command in next_commands:
        out.print(f"    {command}", soft_wrap=True, markup=False)
