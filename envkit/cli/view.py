"""The command that shows a run in the browser."""

from __future__ import annotations

import html
import sys
import webbrowser
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from envkit.cli.options import Json, RunArgument, require_port
from envkit.cli.output import emit, err, out
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

    require_port(port)
    if not (run / "manifest.json").is_file():
        raise UsageError(
            f"{run} is not a run folder: it has no manifest.json; give a folder that demo, train, eval or "
            "bench made"
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
