"""Commands on what runs have left: leaderboard, verify, view."""

from __future__ import annotations

import html
import sys
import webbrowser
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from envkit import runs as run_calls
from envkit.cli.options import (
    Json,
    Machine,
    Prices,
    RunArgument,
    SandboxName,
    complete_runs,
    require_none,
    require_port,
    unless,
)
from envkit.cli.output import emit, err, out
from envkit.errors import UsageError
from envkit.runs import measuring
from envkit.runs.common import RUNS


def view(
    run: RunArgument,
    port: Annotated[int, typer.Option(metavar="PORT", help="Port of 127.0.0.1; 0 takes a free one.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Only render the run's reports again, from the numbers in report.json."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Read a run's episodes in the browser, turn by turn, also while they are being played."""
    from envkit.measure.viewer.server import serve
    from envkit.runtime.store import RunFolder

    require_port(port)
    if rebuild:
        require_none(
            "--rebuild only writes pages", {"port": unless(port, 0), "open": unless(open_browser, False)}
        )
        _rebuild(run, as_json)
        return
    if not (run / "manifest.json").is_file():
        raise UsageError(
            f"{run} is not a run folder: it has no manifest.json; give a folder that demo, train or bench "
            "made"
        )

    until_end = ExitStack()

    def ready(url: str) -> None:
        if as_json:
            emit({"url": url})
        else:
            out.print(url, soft_wrap=True, markup=False)
            err.print("Ctrl-C ends it")
        sys.stdout.flush()  # a program at the other end of a pipe waits for this line
        if open_browser:
            page = until_end.enter_context(_private_redirect(url))
            if not webbrowser.open(page):
                err.print("no browser was found; open the address above in one")

    with until_end:
        serve(RunFolder.open(run), port, ready)


def _rebuild(run: Path, as_json: bool) -> None:
    from envkit.measure.report.page import load_report, report_folders, write_report

    paths = [write_report(load_report(folder), folder, overwrite=True) for folder in report_folders(run)]
    if as_json:
        emit({"reports": [str(path) for path in paths]})
        return
    for path in paths:
        out.print(str(path), soft_wrap=True, markup=False)


@contextmanager
def _private_redirect(url: str) -> Generator[str]:
    """Yield the address of a page that forwards to ``url`` and that only this user can read.

    ``url`` holds the server's token, and every user of the machine can read the browser's command line.
    """
    with TemporaryDirectory(prefix="envkit-view-") as folder:
        page = Path(folder, "open.html")
        page.touch(0o600)
        page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(url)}">\n')
        yield page.as_uri()


def leaderboard(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="Run folders of bench, train or demo.", autocompletion=complete_runs
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the files are written.")
    ] = RUNS,
    machine: Machine = None,
    prices: Prices = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="ROW", help="Row that the others are compared with."),
    ] = None,
    unsolved_by: Annotated[
        str, typer.Option(metavar="ROW", help="Count only the tasks that this row never solved.")
    ] = "",
    seeds: Annotated[
        bool,
        typer.Option(
            "--seeds",
            help="Take rows together whose names are equal, or equal up to an ending like 'seed 1': one "
            "recipe, trained with several seeds.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Put the rows of runs on one board: solve rate, dollars per solved task, comparisons with intervals."""
    page = measuring.leaderboard(
        runs,
        output,
        machine=machine,
        prices=prices,
        against=against,
        unsolved_by=unsolved_by,
        seeds=seeds,
    )
    if as_json:
        emit({"leaderboard": str(page)})
    else:
        out.print(f"leaderboard: {page}", soft_wrap=True, markup=False)


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
    result = run_calls.verify(adapter, tasks=tasks, model=model, sandbox=sandbox)
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
