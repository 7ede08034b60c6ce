"""The command that audits an environment."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from envkit.cli.options import EnvArgument, Json, SandboxName, require_at_least
from envkit.cli.output import emit, out
from envkit.errors import UsageError
from envkit.runs.common import DEFAULT_ENVIRONMENT, isolated_backend, load_tasks, require_train_split
from envkit.runs.rich_display import open_display

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envkit.audit.runner import Finding

#: Time of an attack by training.
_ATTACK_MINUTES = 5.0


def audit(
    env: EnvArgument = DEFAULT_ENVIRONMENT,
    tasks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Tasks to audit with. Default: the environment's starters."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Certificate to write, NAME.json, with its table beside it, NAME.md. Default: in the cache. "
            "Of a package, only certificate.json beside the environment's module is looked for.",
        ),
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
    minutes: Annotated[
        float | None, typer.Option(metavar="M", help="Time of that training. Default: 5.")
    ] = None,
    only: Annotated[
        str,
        typer.Option(metavar="TEXT", help="Run only the checks whose name contains this; write nothing."),
    ] = "",
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Audit an environment: check that it rewards the work and no exploit, and write its certificate."""
    from envkit.audit.certificate import certify, require_place, write, write_cached
    from envkit.audit.runner import prepare_audit, run_audit
    from envkit.env import registry

    if only and (output or attack_by_training):
        raise UsageError("--only runs some checks of an audit; leave out --output and --attack-by-training")
    if minutes is not None and not attack_by_training:
        raise UsageError("--minutes is the time of an attack; add --attack-by-training, or leave it out")
    if minutes is not None and not 0 < minutes < math.inf:
        raise UsageError(f"--minutes is {minutes}; it must be positive and finite")
    if max_turns is not None:
        require_at_least(1, max_turns=max_turns)

    kind = registry.environment(env)
    if (graded := kind.graded_as()) is not kind:
        raise UsageError(f"{env} is graded by the checks of {graded.id}; audit {graded.id} instead")
    if output is not None:
        require_place(output)
        if tasks is not None or max_turns not in (None, kind.max_turns):
            _require_no_standard(output)
    chosen = registry.read_tasks_for(kind, tasks) if tasks else None
    with open_display("rich") as display:
        backend = isolated_backend(sandbox, display)
        if only:
            audited = prepare_audit(kind, backend, display, tasks=chosen, max_turns=max_turns)
            _show(run_audit(audited, display, only), "none: these are some of the checks", as_json)
            return
        more: list[Finding] = []
        if attack_by_training:
            from envkit.audit.cases import keep_cases
            from envkit.runs.before_after.attack import attack

            trained = load_tasks(kind, tasks, "train", backend, display)
            require_train_split(trained, tasks)
            found = attack(kind, trained, backend, minutes or _ATTACK_MINUTES, display)
            more.append(found.finding())
            if found.cases:
                kept = keep_cases(found.cases, kind)
                display.say(f"{len(found.cases)} ways around the reward -> {kept}")
        certificate = certify(kind, backend, display, tasks=chosen, max_turns=max_turns, more=more)
    if output is None:
        path = write_cached(kind, certificate)
    else:
        path = output
        write(certificate, path)
    unchanged = "not written: the audit of the environment's own tasks and turns stays in force"
    _show(certificate.findings, str(path or unchanged), as_json, None if path is None else str(path))


def _require_no_standard(path: Path) -> None:
    """Refuse to replace an audit of the environment's own tasks and turns by one of other tasks or turns.

    Raises:
        UsageError: the file is the certificate of such an audit.
    """
    from envkit.audit.certificate import read

    try:
        earlier = read(path)
    except UsageError:  # there is none, or it is of an older version and says nothing any more
        return
    if earlier.standard:
        raise UsageError(
            f"{path} is the certificate of an audit of {earlier.environment}'s own tasks and turns; choose "
            "another name for one of other tasks or turns"
        )


def _show(findings: Sequence[Finding], place: str, as_json: bool, path: str | None = None) -> None:
    """Print findings and where the certificate is.

    Raises:
        typer.Exit: a check failed.
    """
    passed = all(finding.ok is not False for finding in findings)
    if as_json:
        emit({"passed": passed, "certificate": path, "findings": findings})
    else:
        marks = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "[dim]n/a [/]"}
        for finding in findings:
            out.print(f"{marks[finding.ok]} {finding.check}: {escape(finding.detail)}", soft_wrap=True)
        out.print(f"certificate: {place}", soft_wrap=True, markup=False)
    if not passed:
        raise typer.Exit(1)
