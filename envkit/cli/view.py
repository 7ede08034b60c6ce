"""The command that shows a run in the browser."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from envkit.cli.options import Json
from envkit.cli.ui import emit, err, out


def view(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0 takes a free one.")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser as well.")] = False,
    as_json: Json = False,
) -> None:
    """Read a run's episodes in the browser, turn by turn; also of one that is still being played."""
    from envkit.bench.viewer import serve
    from envkit.errors import UsageError
    from envkit.store import RunFolder

    if not (run / "manifest.json").is_file():
        raise UsageError(
            f"{run} is no run folder: it has no manifest.json; give one that demo, train, eval or bench made"
        )

    def ready(url: str) -> None:
        if as_json:
            emit({"url": url})
        else:
            out.print(url, soft_wrap=True, markup=False)
            err.print("Ctrl-C ends it")
        sys.stdout.flush()  # whoever reads a pipe waits for the line
        if open_:
            webbrowser.open(url)

    serve(RunFolder.open(run), port, ready)
