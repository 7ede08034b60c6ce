"""The command that shows a run in the browser."""

from __future__ import annotations

import sys
import webbrowser
from typing import Annotated

import typer

from envkit.cli.options import Json, RunArgument
from envkit.cli.ui import emit, err, out
from envkit.errors import UsageError


def view(
    run: RunArgument,
    port: Annotated[int, typer.Option(metavar="PORT", help="Port of 127.0.0.1; 0 takes a free one.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Read a run's episodes in the browser, turn by turn, also while they are being played."""
    from envkit.benchmark.viewer import serve
    from envkit.store import RunFolder

    if not 0 <= port <= 65535:
        raise UsageError(f"--port is {port}; expected 0 to 65535")
    if not (run / "manifest.json").is_file():
        raise UsageError(
            f"{run} is not a run folder: it has no manifest.json; give a folder that demo, train, eval or "
            "bench made"
        )

    def ready(url: str) -> None:
        if as_json:
            emit({"url": url})
        else:
            out.print(url, soft_wrap=True, markup=False)
            err.print("Ctrl-C ends it")
        sys.stdout.flush()  # a program at the other end of a pipe waits for this line
        if open_browser:
            webbrowser.open(url)

    serve(RunFolder.open(run), port, ready)
