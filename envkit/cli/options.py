"""Options and steps that several commands share."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from envkit.cli.ui import emit, out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envkit.display import Display
    from envkit.sandbox import SandboxBackend

#: The environment that is meant where none is named.
DEFAULT_ENVIRONMENT = "code-editor"

#: Where run folders go unless said.
RUNS = Path("runs")

EnvName = Annotated[str, typer.Option("--env", help="Environment name from `envkit list`.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Root = Annotated[Path, typer.Option("--root", help="Where run folders go.")]
Unsafe = Annotated[bool, typer.Option("--unsafe", help="Allow a sandbox that does not isolate.")]
SandboxName = Annotated[str, typer.Option("--sandbox", help="auto, or a name from `envkit list`.")]


def proved_backend(name: str, unsafe: bool, display: Display) -> SandboxBackend:
    """The sandbox, its isolation proved before anything runs in it.

    Raises:
        SandboxError: it does not isolate.
        RegistryError: there is none of that name.
    """
    from envkit import registry
    from envkit.sandbox_check import require_isolation

    backend = registry.sandbox_backend(name)
    if unsafe and not backend.isolated:
        display.say(f"[yellow]sandbox {backend.name} does not isolate; model output runs as this user[/]")
        return backend
    require_isolation(backend)
    return backend


def command_line() -> str:
    """What was typed, for reports to say."""
    return shlex.join(["envkit", *sys.argv[1:]])


def done(run: Path, reports: Sequence[Path], as_json: bool, *, stopped: bool) -> None:
    """Say what a run found and where its reports are."""
    found = [heard(report, as_json, run) for report in reports]
    if as_json:
        emit({"run": str(run), "stopped": stopped, "reports": found})


def heard(report: Path, as_json: bool, run: Path) -> dict[str, Any]:
    """What a report says, as plain data for ``--json``; otherwise it is said to a person at once.

    Args:
        run: the run's folder, where the report is, or a folder inside if it is one of several.
    """
    from envkit.bench.report import load_report
    from envkit.bench.report_text import headline
    from envkit.bench.summary import summarise
    from envkit.plain import encode

    data = load_report(report.parent)
    summary = summarise(data)
    if not as_json:
        if report.parent != run:
            out.print(str(report.parent.relative_to(run)), style="bold", markup=False)
        for sentence in headline(data, summary):
            out.print(sentence, markup=False)
        out.print(f"report: {report}", soft_wrap=True, markup=False)
    return {"environment": data.environment, "report": str(report), "summary": encode(summary)}
