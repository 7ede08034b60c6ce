"""The ``envkit`` command: where every subcommand hangs, and where errors become one line."""

from __future__ import annotations

import signal
import sys
import warnings
from types import FrameType

import typer
from rich.markup import escape

from envkit.cli import audit, bench, info, new, play, sandbox, tasks, train, view
from envkit.cli.ui import err
from envkit.errors import EnvkitError, StoreError, UsageError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="RL environments around real applications, and the loop that trains small models on them.",
)

_verbose = False


@app.callback()
def options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show the trace of an error."),
) -> None:
    """Options of every command."""
    global _verbose
    _verbose = verbose


app.command("list")(info.list_)
app.command()(info.doctor)
app.command()(train.demo)
app.command()(new.new)
app.command()(play.play)
app.command()(audit.audit)
app.add_typer(tasks.app, name="tasks")
app.add_typer(sandbox.app, name="sandbox")
app.command()(train.sft)
app.command()(train.train)
app.command("eval")(bench.evaluate)
app.command()(bench.bench)
app.command()(bench.rescore)
app.command()(bench.leaderboard)
app.command()(bench.prices)
app.command()(info.report)
app.command()(view.view)


#: The signals that ended this command.
_ended_by: list[int] = []


def _terminate(number: int, frame: FrameType | None) -> None:
    """End the command as Ctrl-C does, so that sandboxes are removed on the way out."""
    _ended_by.append(number)
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line: 0 done, 1 failed, 2 bad input or storage, 128 + N ended by signal N."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # `nohup` has SIGHUP ignored, and it stays so
            signal.signal(number, _terminate)
    warnings.filterwarnings("ignore", module=r"(transformers|trl|peft|torch)(\..*)?")
    try:
        app()
    except EnvkitError as error:
        if _verbose:
            raise
        # Escaped: "envkit[train]" is text, not a style.
        err.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        # A folder that cannot be written or read is the person's to mend, as bad input is.
        sys.exit(2 if isinstance(error, UsageError | StoreError) else 1)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
    finally:
        # The process is about to end, and what it clears away on its way out must not be cut short.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if _ended_by:  # typer exits with 130 after any interrupt
            sys.exit(128 + _ended_by[0])
