"""The commands of `envkit study`."""

from __future__ import annotations

import typer

from envkit.cli.help import Command
from envkit.cli.study import (
    claims,
    controls,
    forgetting,
    interference,
    passk,
    prompt,
    specialists,
    steering,
    support,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Test claims about LoRA and RL, and ask the same questions of your own adapters.",
)

_CLAIMS, _BEFORE, _AFTER = "Claims", "Before training, or without it", "Your adapters"

app.command("list", cls=Command, rich_help_panel=_CLAIMS)(claims.list_)
app.command(cls=Command, rich_help_panel=_CLAIMS)(claims.claim)
app.command(cls=Command, rich_help_panel=_BEFORE)(support.support)
app.command(cls=Command, rich_help_panel=_BEFORE)(prompt.prompt)
app.command(cls=Command, rich_help_panel=_BEFORE)(steering.steering)
app.command(cls=Command, rich_help_panel=_AFTER)(passk.passk)
app.command(cls=Command, rich_help_panel=_AFTER)(controls.controls)
app.command(cls=Command, rich_help_panel=_AFTER)(forgetting.forgetting)
app.command(cls=Command, rich_help_panel=_AFTER)(interference.interference)
app.command(cls=Command, rich_help_panel=_AFTER)(specialists.specialists)
