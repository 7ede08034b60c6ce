"""`envkit push`: publish an adapter on the model hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from envkit import api
from envkit.cli.options import Json, complete_runs
from envkit.cli.output import emit, out


def push(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="An adapter's folder, or the run that trained it.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository on the hub: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    no_claim: Annotated[
        bool,
        typer.Option(
            "--no-claim",
            help="Leave out claim.json, which shows the prompts of a few held-out tasks. Without it, nobody "
            "can run `envkit verify`.",
        ),
    ] = False,
    measured_in: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="A run of eval or bench that measured the adapter; its table is in the card too.",
            autocompletion=complete_runs,
        ),
    ] = None,
    dry_run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the files to this new folder, and upload nothing."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Upload a trained adapter to the Hugging Face Hub, with a model card.

    The card names the environment, its certificate and tasks, the settings and the measured solve rates, and
    says how to load and verify the adapter. Needs `hf auth login`, or HF_TOKEN.
    """
    result = api.push_adapter(
        adapter, repo, private=private, claim=not no_claim, measured_in=measured_in, dry_run=dry_run
    )
    if as_json:
        emit({**asdict(result), "adapter": str(result.adapter)})
        return
    for name, size_bytes in result.files.items():
        out.print(f"{size_bytes / 10**6:10.3f} MB  {name}", markup=False)
    out.print(result.url or f"nothing is uploaded; the files are in {dry_run}", markup=False, soft_wrap=True)
