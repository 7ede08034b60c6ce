"""The command that puts an environment to the test."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from envkit.cli.options import DEFAULT_ENVIRONMENT, Json, SandboxName, proved_backend
from envkit.cli.ui import emit, live, out


def audit(
    env: Annotated[str, typer.Argument(help="Environment name from `envkit list`.")] = DEFAULT_ENVIRONMENT,
    tasks: Annotated[Path | None, typer.Option(help="Task file; default: its starters.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Certificate to write; default: in the cache.")
    ] = None,
    max_turns: Annotated[int, typer.Option(min=1, help="Actions per episode.")] = 3,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Try whether an environment pays for the work and for nothing else; write its certificate."""
    from envkit import registry
    from envkit.audit.certificate import Certificate, cached, content_digest, write
    from envkit.audit.runner import AuditedEnv, run_audit

    kind = registry.environment(env)
    given = registry.read_tasks_for(kind, tasks) if tasks else None
    with live() as display:
        backend = proved_backend(sandbox, False, display)
        posed = given or kind.make_tasks("starter", sandbox=backend, display=display)
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
