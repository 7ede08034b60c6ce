"""Commands about sandboxes: does one keep its promises here, and what did killed runs leave behind."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from envkit.cli.parts import Json
from envkit.cli.ui import emit, err, out
from envkit.errors import MissingExtraError, SandboxUnavailable

app = typer.Typer(no_args_is_help=True, help="Try sandboxes, and clear away what killed runs have left.")


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="auto, or a name from `envkit list`.")] = "auto",
    as_json: Json = False,
) -> None:
    """Try to break out of a sandbox and to overload it, in every way that the suite knows."""
    from envkit.registry import sandbox_backend
    from envkit.sandbox_check import self_check

    backend = sandbox_backend(name)
    findings = self_check(backend)
    failed = [finding for finding in findings if not finding.ok]
    if as_json:
        cases = [{"name": one.name, "ok": one.ok, "detail": one.detail} for one in findings]
        emit({"sandbox": backend.name, "isolated": backend.isolated, "cases": cases})
    else:
        for finding in failed:
            out.print(f"[red]no[/] {finding.name}: {escape(finding.detail)}")
        out.print(f"{backend.name}: {len(findings) - len(failed)} of {len(findings)} cases hold")
    if failed:
        raise typer.Exit(1)


@app.command()
def reap(as_json: Json = False) -> None:
    """Remove folders, control groups and containers whose owner is dead. Every run does so at its start."""
    from envkit.sandboxes import docker
    from envkit.sandboxes._sandbox import reap_leftovers

    removed = {"folders": reap_leftovers(), "containers": list[str]()}
    try:
        removed["containers"] = docker.reap()
    except (SandboxUnavailable, MissingExtraError) as error:
        err.print(f"containers not looked at: {escape(str(error))}", soft_wrap=True)
    if as_json:
        emit(removed)
        return
    for kind, names in removed.items():
        out.print(f"{kind}: {', '.join(names) or 'none'}", soft_wrap=True, markup=False)
