"""The command that audits an environment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from envkit.api.common import DEFAULT_ENVIRONMENT, isolated_backend, load_tasks, require_train_split
from envkit.api.rich_display import open_display
from envkit.cli.options import EnvArgument, Json, SandboxName
from envkit.cli.output import emit, out
from envkit.stop import never

if TYPE_CHECKING:
    from envkit.audit.runner import Finding


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
    max_turns: Annotated[
        int | None,
        typer.Option(metavar="N", help="Actions per episode, at most. Default: the environment's own."),
    ] = None,
    attack_by_training: Annotated[
        bool,
        typer.Option(
            "--attack-by-training",
            help="First train a throwaway adapter to earn the reward and fail the held-out checks.",
        ),
    ] = False,
    minutes: Annotated[float, typer.Option(metavar="M", help="Time of that training.")] = 5.0,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Audit an environment: check that it rewards the work and no exploit, and write its certificate."""
    from envkit import registry
    from envkit.audit.certificate import certify, write, write_cached

    kind = registry.environment(env)
    chosen = registry.read_tasks_for(kind, tasks) if tasks else None
    with open_display("rich") as display:
        backend = isolated_backend(sandbox, display)
        more: list[Finding] = []
        if attack_by_training:
            from envkit.audit.cases import keep_cases
            from envkit.studies.attack import attack

            trained = load_tasks(kind, tasks, "train", backend, display)
            require_train_split(trained, tasks)
            found = attack(kind, trained, backend, minutes, display, never)
            more.append(found.finding())
            if found.cases:
                kept = keep_cases(found.cases, kind)
                display.say(escape(f"{len(found.cases)} ways around the reward -> {kept}"))
        certificate = certify(kind, backend, display, tasks=chosen, max_turns=max_turns, more=more)
    if output is None:
        path = write_cached(kind, certificate)
    else:
        path = output
        write(certificate, path)
    if as_json:
        emit(
            {
                "passed": certificate.passed,
                "certificate": None if path is None else str(path),
                "findings": certificate.findings,
            }
        )
    else:
        marks = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "[dim]n/a [/]"}
        for finding in certificate.findings:
            out.print(f"{marks[finding.ok]} {finding.check}: {escape(finding.detail)}", soft_wrap=True)
        unchanged = "not written: the environment's valid certificate, of its own tasks, stays in force"
        out.print(f"certificate: {path or unchanged}", soft_wrap=True, markup=False)
    if not certificate.passed:
        raise typer.Exit(1)
