"""Commands that look: what is installed, whether this machine is ready, what a run found."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.markup import escape
from rich.table import Table

from envkit import registry
from envkit.cli.options import Json
from envkit.cli.ui import emit, out
from envkit.errors import EnvkitError

#: What only those need who run a model here, to train it or to ask it.
_MODELS: Final = ("torch", "transformers", "peft", "trl")


def list_(as_json: Json = False) -> None:
    """List the environments and sandboxes that are installed, and the agents that can be named."""
    from envkit.agents.cards import shipped_cards
    from envkit.bench.spec import SCRIPTS

    found = {kind: registry.names(kind) for kind in registry.GROUPS}
    found |= {"script": sorted(SCRIPTS), "card": shipped_cards()}
    if as_json:
        emit(found)
        return
    for kind, names in found.items():
        out.print(f"[bold]{kind}[/]: {', '.join(names) or 'none'}")


def doctor(as_json: Json = False) -> None:
    """Say whether this machine is ready, and the command that mends what is not."""
    from envkit.models import DEFAULT_MODEL, cache_dir
    from envkit.sandbox_check import self_check

    rows: list[tuple[str, bool, str]] = [
        ("python", True, f"{platform.python_version()} on {platform.machine()}"),
        ("cores", True, str(len(os.sched_getaffinity(0)))),
    ]
    try:
        backend = registry.sandbox_backend()
        findings = self_check(backend)
        failed = [f"{finding.name}: {finding.detail}" for finding in findings if not finding.ok]
        text = failed[0] if failed else f"{backend.name}, {len(findings)} checks pass"
        rows.append(("sandbox", not failed, text))
    except EnvkitError as error:
        rows.append(("sandbox", False, str(error)))
    for package in _MODELS:
        there = find_spec(package) is not None
        missing = "only for models that run here; in envkit's clone: pip install --editable '.[train]'"
        rows.append((package, there, "installed" if there else missing))
    cached = (cache_dir() / "models" / DEFAULT_MODEL / "digest.json").exists()
    rows.append(("model", True, f"{DEFAULT_MODEL}: {'cached' if cached else 'will be downloaded, 93 MB'}"))
    ready = all(ok for name, ok, _ in rows if name not in _MODELS)
    if as_json:
        emit({"ready": ready, "checks": [{"name": n, "ok": ok, "detail": d} for n, ok, d in rows]})
    else:
        table = Table(show_header=False, box=None)
        for name, ok, detail in rows:
            no = "[yellow]no[/]" if name in _MODELS else "[red]no[/]"
            table.add_row("[green]ok[/]" if ok else no, name, escape(detail))
        out.print(table)
    if not ready:
        raise typer.Exit(1)


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    as_json: Json = False,
) -> None:
    """Build a run's report again from its recorded numbers."""
    from envkit.bench.report import load_report, report_folders, write_report

    paths = [write_report(load_report(folder), folder, overwrite=True) for folder in report_folders(run)]
    if as_json:
        emit({"reports": [str(path) for path in paths]})
        return
    for path in paths:
        out.print(str(path), soft_wrap=True, markup=False)
