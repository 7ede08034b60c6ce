"""Commands that inform: list installed parts, check this machine, rebuild a report."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from typing import Final

import typer
from rich.markup import escape

from envkit import plugins
from envkit.cli.options import Json, RunArgument
from envkit.cli.output import emit, out
from envkit.errors import EnvkitError

#: Packages that only local models need, to train or to sample.
_MODELS: Final = ("torch", "transformers", "peft", "trl")


def list_(as_json: Json = False) -> None:
    """List installed environments and sandboxes, scripted agents, cards of API models, and harnesses."""
    from envkit.agents.cards import shipped_cards
    from envkit.benchmark.spec import SCRIPTS
    from envkit.harness import shipped_harnesses

    found = {kind: plugins.names(kind) for kind in plugins.GROUPS}
    found |= {"script": sorted(SCRIPTS), "card": shipped_cards()}
    found["harness"] = shipped_harnesses()
    if as_json:
        emit(found)
        return
    for kind, names in found.items():
        out.print(f"[bold]{kind}[/]: {', '.join(names) or 'none'}")


def doctor(as_json: Json = False) -> None:
    """Check whether this machine is ready; print the command that mends what is not."""
    from rich.table import Table

    from envkit.models import DEFAULT_MODEL, KNOWN, is_fetched
    from envkit.sandbox_check import self_check

    rows: list[tuple[str, bool, str]] = [
        ("python", True, f"{platform.python_version()} on {platform.machine()}"),
        ("cores", True, str(len(os.sched_getaffinity(0)))),
    ]
    try:
        backend = plugins.sandbox_backend()
        findings = self_check(backend)
        failed = [f"{finding.name}: {finding.detail}" for finding in findings if not finding.ok]
        text = failed[0] if failed else f"{backend.name}, {len(findings)} checks pass"
        rows.append(("sandbox", not failed, text))
    except EnvkitError as error:
        rows.append(("sandbox", False, str(error)))
    for package in _MODELS:
        installed = find_spec(package) is not None
        missing = "only for models that run here; in envkit's clone: pip install --editable '.[train]'"
        rows.append((package, installed, "installed" if installed else missing))
    size = f"will be downloaded, {KNOWN[DEFAULT_MODEL].file_bytes // 10**6} MB"
    rows.append(("model", True, f"{DEFAULT_MODEL}: {'cached' if is_fetched(DEFAULT_MODEL) else size}"))
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


def report(run: RunArgument, as_json: Json = False) -> None:
    """Render a run's report again, from the numbers in its report.json."""
    from envkit.benchmark.report import load_report, report_folders, write_report

    paths = [write_report(load_report(folder), folder, overwrite=True) for folder in report_folders(run)]
    if as_json:
        emit({"reports": [str(path) for path in paths]})
        return
    for path in paths:
        out.print(str(path), soft_wrap=True, markup=False)
