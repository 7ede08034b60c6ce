"""Commands on models: list, fetch, measure their speed here, publish an adapter, prices and bills."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from envkit import runs
from envkit.cli.help import Command
from envkit.cli.options import Json, Prices, complete_models, complete_runs
from envkit.cli.output import emit, out
from envkit.errors import UsageError

app = typer.Typer(
    help="List the models that envkit knows by id, fetch one, publish an adapter; show prices and bills."
)

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
    from envkit.models import DEFAULT_MODEL, resolve
    from envkit.runs.rich_display import open_display

    with open_display("rich") as display:
        ref = resolve(name or DEFAULT_MODEL, display)
    out.print(f"{ref.id}: {ref.path}", soft_wrap=True, markup=False)


@app.command(cls=Command)
def measure(name: ModelArgument = None, as_json: Json = False) -> None:
    """Measure how fast a model samples and learns on this machine; `envkit models` shows the last result."""
    from envkit.models import DEFAULT_MODEL
    from envkit.runs.before_after.model_speed import measure_model
    from envkit.runs.rich_display import open_display

    name = name or DEFAULT_MODEL
    with open_display("rich") as display:
        found = measure_model(name, display)
    if as_json:
        emit({"id": name, **asdict(found)})
        return
    out.print(f"{name}: {found}", markup=False)


@app.command(cls=Command)
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
            help="A run of bench that measured the adapter; its table is in the card too.",
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
    result = runs.push_adapter(
        adapter, repo, private=private, claim=not no_claim, measured_in=measured_in, dry_run=dry_run
    )
    if as_json:
        emit({**asdict(result), "adapter": str(result.adapter)})
        return
    for name, size_bytes in result.files.items():
        out.print(f"{size_bytes / 10**6:10.3f} MB  {name}", markup=False)
    out.print(result.url or f"nothing is uploaded; the files are in {dry_run}", markup=False, soft_wrap=True)


@app.command(cls=Command)
def prices(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Part of a model's or machine's name. Default: all.", show_default=False
        ),
    ] = "",
    table: Prices = None,
    as_json: Json = False,
) -> None:
    """List prices: dollars per million tokens of models, and per hour of machines."""
    from rich.table import Table

    from envkit.runtime.prices import load_prices

    price_table = load_prices(table)
    models = {model: price for model, price in sorted(price_table.models.items()) if name in model}
    machines = {machine: usd for machine, usd in sorted(price_table.machines.items()) if name in machine}
    if not models and not machines:
        raise UsageError(f"no model or machine in the table of {price_table.date} has {name!r} in its name")
    if as_json:
        sources = {model: price_table.notes.get(model, price_table.source) for model in models}
        rows = {m: {**asdict(price), "source": sources[m]} for m, price in models.items()}
        emit({"date": price_table.date, "source": price_table.source, "models": rows, "machines": machines})
        return
    caption = f"$ per million tokens, {price_table.date}: {price_table.source}"
    listing = Table("model", "input", "output", "cached", "source", box=None, caption=caption)
    for model, price in models.items():
        cached = "" if price.cached is None else f"{price.cached:g}"
        note = escape(price_table.notes.get(model, ""))
        listing.add_row(escape(model), f"{price.input:g}", f"{price.output:g}", cached, note)
    if models:
        out.print(listing)
    if machines:
        hours = ", ".join(f"{machine} ${usd:g}" for machine, usd in machines.items())
        out.print(f"per hour: {hours}", markup=False)


@app.command(cls=Command)
def bill(
    ledger: Annotated[Path, typer.Argument(metavar="LEDGER", help="File of `envkit serve --ledger`.")],
    prices: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=r'TOML of prices: \[models."ID"] with input and output.'),
    ] = None,
    since: Annotated[
        str, typer.Option(metavar="DATE", help="First day to bill, in UTC: YYYY-MM-DD. Default: all days.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Print what each key used of each served model, and what that costs.

    Requests that failed are free.
    """
    from rich.table import Table

    from envkit.runtime.prices import load_prices
    from envkit.serving.ledger import Ledger

    if not ledger.is_file():
        raise UsageError(f"{ledger}: no such file; expected the ledger of `envkit serve --ledger`")
    try:
        first = date.fromisoformat(since) if since else None
    except ValueError as error:
        raise UsageError(f"--since {since}: expected a date, such as 2026-11-29") from error
    book = Ledger(ledger, read_only=True)
    lines = book.bill(load_prices(prices), first)
    book.close()
    if as_json:
        emit([asdict(line) for line in lines])
        return
    table = Table(box=None, pad_edge=False)
    for title in ("key", "model", "requests", "prompt tokens", "completion tokens", "dollars"):
        table.add_column(title, no_wrap=True)
    for line in lines:
        usd = "no price" if line.usd is None else f"{line.usd:.6f}"
        numbers = (line.requests, line.prompt_tokens, line.completion_tokens)
        table.add_row(escape(line.client), escape(line.model), *(f"{number:,}" for number in numbers), usd)
    out.print(table)
    if unpriced := sorted({line.model for line in lines if line.usd is None}):
        out.print(
            f'no price for {", ".join(unpriced)}: give --prices a file that has [models."{unpriced[0]}"] '
            "with input and output in dollars per million tokens",
            markup=False,
            soft_wrap=True,
        )
