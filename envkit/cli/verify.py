"""`envkit verify`: replay the episodes that an adapter's folder claims."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from envkit import api
from envkit.cli.options import Json, SandboxName
from envkit.cli.output import emit, out


def verify(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="An adapter's folder, or the run that trained it.")
    ],
    tasks: Annotated[
        Path | None,
        typer.Option(
            "--tasks", "--heldout", metavar="FILE", help="The held-out tasks, if they were from a file."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The base model, if it is no longer where it was.")
    ] = None,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Replay a few held-out episodes of a trained adapter, token by token, and grade them again.

    Prints a line for each thing that was compared: weights, base model, environment, tasks, tokens, verdicts.
    Then "reproduced" or "not reproduced". On other hardware than the claim's, log-probabilities may differ by
    a stated tolerance.
    """
    result = api.verify(adapter, tasks=tasks, model=model, sandbox=sandbox)
    if as_json:
        findings = [asdict(finding) for finding in result.findings]
        emit({"adapter": str(result.adapter), "reproduced": result.reproduced, "findings": findings})
    else:
        for finding in result.findings:
            mark = "ok" if finding.ok else "DIFFERS"
            out.print(f"{mark:8}{finding.what}: {finding.detail}", markup=False, soft_wrap=True)
        out.print("reproduced" if result.reproduced else "not reproduced", markup=False)
    if not result.reproduced:
        raise typer.Exit(1)
