"""Commands on models: list the known ones, fetch one, measure its speed here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from envkit.cli.help import Command
from envkit.cli.options import Json, complete_models
from envkit.cli.output import emit, out

app = typer.Typer(help="List the models that envkit knows by id, fetch one, measure its speed here.")

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="ID",
        help="An id from `envkit models`. Default: qwen2.5-coder-0.5b-q4.",
        autocompletion=complete_models,
    ),
]


@app.callback(invoke_without_command=True)
def list_(context: typer.Context, as_json: Json = False) -> None:
    """List the models that envkit knows by id: licence, sizes, and speed and memory if measured here."""
    from rich.table import Table

    from envkit.models import KNOWN, is_fetched, known_speed

    if context.invoked_subcommand is not None:
        return
    if as_json:
        measured = {name: {"here": is_fetched(name), "speed": known_speed(name)} for name in KNOWN}
        emit({name: asdict(model) | measured[name] for name, model in KNOWN.items()})
        return
    table = Table(box=None, pad_edge=False)
    for title in ("id", "parameters", "licence", "download", "on disk", "here"):
        table.add_column(title, no_wrap=True)
    for name, model in KNOWN.items():
        table.add_row(
            name,
            f"{model.parameters:,} M",
            model.licence,
            f"{model.file_bytes / 10**6:,.0f} MB",
            f"{model.disk_bytes / 10**9:.1f} GB",
            "yes" if is_fetched(name) else "no",
        )
    out.print(table)
    for name in KNOWN:
        if speed := known_speed(name):
            out.print(f"{name} here: {speed}", markup=False)


@app.command(cls=Command)
def fetch(name: ModelArgument = None) -> None:
    """Download a model and convert it. An interrupted download goes on where it was."""
    from envkit.api.rich_display import open_display
    from envkit.models import DEFAULT_MODEL, resolve

    with open_display("rich") as display:
        ref = resolve(name or DEFAULT_MODEL, display)
    out.print(f"{ref.id}: {ref.path}", soft_wrap=True, markup=False)


@app.command(cls=Command)
def measure(name: ModelArgument = None, as_json: Json = False) -> None:
    """Measure how fast a model samples and learns on this machine; `envkit models` shows the last result."""
    from envkit.api.rich_display import open_display
    from envkit.models import DEFAULT_MODEL
    from envkit.studies.model_speed import measure_model

    name = name or DEFAULT_MODEL
    with open_display("rich") as display:
        found = measure_model(name, display)
    if as_json:
        emit({"id": name, **asdict(found)})
        return
    out.print(f"{name}: {found}", markup=False)
