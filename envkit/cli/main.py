"""The ``envkit`` command: where every subcommand hangs, and where errors become one line."""

from __future__ import annotations

import signal
import sys
import warnings

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


def main() -> None:
    """Run the command line: 0 done, 1 failed, 2 bad input or storage, 130 interrupted."""
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
        signal.signal(signal.SIGINT, signal.SIG_IGN)
