"""The ``envkit`` command: its subcommands, exit codes, and errors in one line.

Exit codes: 0 done, 1 failed, 2 bad input or storage; 130, 143 or 129 if Ctrl-C, SIGTERM or SIGHUP ended it.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from importlib import metadata
from typing import Any

import typer
import typer.main
from rich.markup import escape

from envkit.cli import audit, bench, info, models, results, sandbox, serve, tasks, train
from envkit.cli.help import Command, Group
from envkit.cli.output import err, out
from envkit.cli.play.command import play
from envkit.cli.study.app import app as study
from envkit.errors import EnvkitError, StoreError, UsageError
from envkit.runs.interrupts import Interrupted, handling_signals, raise_interrupted
from envkit.runtime.plugins import place_in_plugin

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="RL environments around real applications, and the loop that trains small models on them.",
)

_verbose = False
_OUT_OF_MEMORY = "out of memory; try a smaller model, smaller sizes, or a higher memory limit"
#: Set by a shell that asks for completions.
_COMPLETION = "_ENVKIT_COMPLETE"


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"envkit {metadata.version('envkit-rl')}", markup=False)
        raise typer.Exit


@app.callback()
def options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show the traceback of an error."),
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Options of every command."""
    global _verbose
    _verbose = verbose


_START, _BUILD, _TRAIN, _MEASURE = "Start here", "Environments and tasks", "Train and serve", "Measure"

app.command("list", cls=Command, rich_help_panel=_START)(info.list_)
app.command(cls=Command, rich_help_panel=_START)(info.doctor)
app.command(cls=Command, rich_help_panel=_START)(train.demo)
app.command(cls=Command, rich_help_panel=_START)(play)
app.command(cls=Command, rich_help_panel=_BUILD)(info.new)
app.command(cls=Command, rich_help_panel=_BUILD)(audit.audit)
app.add_typer(tasks.app, cls=Group, name="tasks", rich_help_panel=_BUILD)
app.add_typer(sandbox.app, cls=Group, name="sandbox", rich_help_panel=_BUILD)
app.command(cls=Command, rich_help_panel=_TRAIN)(train.train)
app.add_typer(models.app, cls=Group, name="models", rich_help_panel=_TRAIN)
app.command(cls=Command, rich_help_panel=_TRAIN)(serve.serve)
app.command(cls=Command, rich_help_panel=_MEASURE)(bench.bench)
app.command(cls=Command, rich_help_panel=_MEASURE)(results.verify)
app.command(cls=Command, rich_help_panel=_MEASURE)(results.leaderboard)
app.command(cls=Command, rich_help_panel=_MEASURE)(results.view)
app.add_typer(study, cls=Group, name="study", rich_help_panel=_MEASURE)


def main() -> None:
    """Run the command line and exit with its code; see the module's exit codes."""
    warnings.filterwarnings("ignore", module=r"(transformers|trl|peft|torch)(\..*)?")
    with handling_signals(raise_interrupted):
        code = run(sys.argv[1:])
        # The process is about to end: its clean-up must not be cut short.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. Every error is one line on stderr."""
    global _verbose
    _verbose = False
    try:
        command = typer.main.get_command(app)
        if _COMPLETION in os.environ:  # a shell asks what could be typed next
            command.main(arguments, prog_name="envkit")
        # Not `command.main`: it would turn every interrupt into exit code 130.
        with command.make_context("envkit", arguments) as context:
            command.invoke(context)
        return 0
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        return _bad_command_line(error)
    except BrokenPipeError:
        # The reader of our output is gone, as in `envkit list | head -1`. Python flushes stdout once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (EnvkitError, OSError, MemoryError, RecursionError) as error:
        return _fail(*_line_and_code(error))
    except KeyboardInterrupt as error:
        number = error.signal if isinstance(error, Interrupted) else signal.SIGINT
        err.print(f"interrupted by {number.name}")
        return 128 + number
    except Exception as error:
        from envkit.training.learner.memory import is_out_of_memory

        if is_out_of_memory(error):
            return _fail(_OUT_OF_MEMORY, 1)
        name = type(error).__name__
        if where := place_in_plugin(error):
            return _fail(f"{where}: {name}: {error}; mend it there; `envkit -v ...` shows the traceback", 1)
        return _fail(
            f"this is a fault in envkit, not in your input: {name}: {error}; run it again as `envkit -v ...` "
            "for the traceback, and report it",
            1,
        )


def _line_and_code(error: Exception) -> tuple[str, int]:
    """The message and the exit code of an error that has a known cause."""
    match error:
        case UsageError() | StoreError():
            return str(error), 2  # a folder that cannot be read or written is the user's to mend
        case EnvkitError():
            return str(error), 1
        case OSError():
            file = f"{error.filename}: " if error.filename else ""
            return f"{file}{error.strerror or error}", 2
        case MemoryError():
            return _OUT_OF_MEMORY, 1
        case _:
            return "something is nested too deeply to be read (RecursionError); check the input files", 2


def _bad_command_line(error: typer.TyperException) -> int:
    """Report a command line that typer refuses; without any arguments, the help was printed."""
    message = error.format_message()
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "envkit"
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message)
        return 2
    return _fail(f"{message.rstrip('.')}; see: {path} --help", error.exit_code)


def _fail(line: str, code: int) -> int:
    """Print an error, after its traceback with ``-v``; returns the exit code."""
    if _verbose:
        traceback.print_exc()
    # One line that any terminal can show, whatever the message holds.
    text = " ".join(line.split()).encode(errors="backslashreplace").decode()
    err.print(f"[red]error:[/] {escape(text)}", soft_wrap=True)  # "envkit[train]" is text, not a style
    return code
