"""The command that audits an environment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from envkit.api.common import DEFAULT_ENVIRONMENT, isolated_backend, load_tasks
from envkit.api.display import open_display
from envkit.cli.options import EnvArgument, Json, SandboxName
from envkit.cli.ui import emit, out


def audit(
    env: EnvArgument = DEFAULT_ENVIRONMENT,
    tasks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Tasks to audit with. Default: the environment's starters."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Certificate to write. Default: in the cache."),
    ] = None,
    max_turns: Annotated[int, typer.Option(metavar="N", help="Actions per episode, at most.")] = 3,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Audit an environment: check that it rewards the work and no exploit, and write its certificate."""
    from envkit import registry
    from envkit.audit.certificate import Certificate, cached, content_digest, write
    from envkit.audit.runner import AuditedEnv, run_audit

    kind = registry.environment(env)
    with open_display("rich") as display:
        backend = isolated_backend(sandbox, display)
        posed = load_tasks(kind, tasks, "starter", backend, display)
        findings = run_audit(AuditedEnv(kind, posed, backend, max_turns), display)
    today = time.strftime("%Y-%m-%d")
    made = Certificate(
        kind.id, content_digest(kind), today, backend.name, len(posed), findings, kind.isolation
    )
    path = output or cached(kind)
    write(made, path)
    if as_json:
        emit({"passed": made.passed, "certificate": str(path), "findings": findings})
    else:
        marks = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "[dim]n/a [/]"}
        for finding in findings:
            out.print(f"{marks[finding.ok]} {finding.check}: {escape(finding.detail)}", soft_wrap=True)
        out.print(f"certificate: {path}", soft_wrap=True, markup=False)
    if not made.passed:
        raise typer.Exit(1)
