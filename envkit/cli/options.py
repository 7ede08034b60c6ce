"""Shared options of commands, their shell completion, and printing of results."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from envkit.cli.output import out
from envkit.errors import UsageError
from envkit.runs.common import RUNS
from envkit.runs.results import Report
from envkit.runtime.plain import encode


def complete_environments(incomplete: str) -> list[str]:
    """Complete the name of an installed environment."""
    from envkit.env import registry

    return _beginning(incomplete, registry.names("environment"))


def complete_sandboxes(incomplete: str) -> list[str]:
    """Complete the name of an installed sandbox."""
    from envkit.env import registry

    return _beginning(incomplete, ["auto", *registry.names("sandbox")])


def complete_cards(incomplete: str) -> list[str]:
    """Complete the name of a shipped card."""
    from envkit.agents.cards import shipped_cards

    return _beginning(incomplete, shipped_cards())


def complete_models(incomplete: str) -> list[str]:
    """Complete the id of a known model."""
    from envkit.models import KNOWN

    return _beginning(incomplete, KNOWN)


def complete_controls(incomplete: str) -> list[str]:
    """Complete what can be trained of a model."""
    from envkit.training.config import CONTROLS

    return _beginning(incomplete, CONTROLS)


def complete_trackers(incomplete: str) -> list[str]:
    """Complete the name of an experiment tracker."""
    from envkit.training.trackers import NAMES

    return _beginning(incomplete, NAMES)


def complete_studies(incomplete: str) -> list[str]:
    """Complete the name of a study."""
    from envkit.studies.grid.catalogue import STUDIES

    return _beginning(incomplete, STUDIES)


def complete_runs(incomplete: str) -> list[str]:
    """Run folders in ``runs/``, or in the folder that was typed, newest first."""
    folder = Path(incomplete.rpartition("/")[0] or ".") if "/" in incomplete else Path("runs")
    found = sorted((path.parent for path in folder.glob("*/manifest.json")), reverse=True)
    return _beginning(incomplete, map(str, found))


def _beginning(start: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(start)]


EnvName = Annotated[
    str,
    typer.Option(
        "--env",
        metavar="NAME",
        help="Environment: a name from `envkit list`.",
        autocompletion=complete_environments,
    ),
]
TrainedEnv = Annotated[
    str | None,
    typer.Option(
        "--env",
        metavar="NAME",
        help="Environment: a name from `envkit list`; NAME@HARNESS lets an agent program play. Default: the "
        "one of the config's mix, or code-editor.",
        autocompletion=complete_environments,
    ),
]
NoHarnessEnv = Annotated[
    str | None,
    typer.Option(
        "--env",
        metavar="NAME",
        help="Environment: a name from `envkit list`. Default: the one of the config's mix, or code-editor.",
        autocompletion=complete_environments,
    ),
]
EnvArgument = Annotated[
    str,
    typer.Argument(
        metavar="ENVIRONMENT", help="A name from `envkit list`.", autocompletion=complete_environments
    ),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=complete_runs)
]
Resume = Annotated[
    Path | None,
    typer.Option(metavar="RUN", help="Continue an interrupted run.", autocompletion=complete_runs),
]
Split = Annotated[
    str,
    typer.Option(
        metavar="SPLIT",
        help="The environment's own tasks to measure on: heldout to choose settings, test for final numbers. "
        "Runs on test are counted, in each folder of runs.",
    ),
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Play only the first N tasks.")]
MaxTaskChars = Annotated[
    int | None,
    typer.Option(metavar="N", help="Leave out tasks whose prompt and files have more than N characters."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Root = Annotated[Path, typer.Option("--root", metavar="FOLDER", help="Where the run folder is made.")]
SandboxName = Annotated[
    str,
    typer.Option(
        "--sandbox",
        metavar="NAME",
        help="auto, or a name from `envkit list`.",
        autocompletion=complete_sandboxes,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Device of local models: cpu, or cuda for one GPU. Default: cpu."),
]
Prices = Annotated[
    Path | None, typer.Option("--prices", metavar="FILE", help="TOML of prices, on top of envkit's own.")
]
Machine = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Machine of `envkit models prices` whose hourly price local models pay. Default: cpu-2-cores, "
        "if they ran on two cores without a GPU, or half of it for one core.",
    ),
]


def command_line() -> str:
    """The command as it was typed, for reports."""
    return shlex.join(["envkit", *sys.argv[1:]])


def require_absent(path: Path) -> None:
    """Raise if an output file exists or cannot be made, before any work.

    Raises:
        UsageError: something is there, or its folder cannot be written to.
    """
    try:
        taken = path.exists() or path.is_symlink()
        there = next((folder for folder in path.absolute().parents if folder.exists()), path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; choose another name") from error
    if taken:
        raise UsageError(f"{path} exists; choose another name, nothing is overwritten")
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written: {there} is no folder that you may write to")


def require_at_least(minimum: int, **options: int) -> None:
    """Raise if an option is too small.

    Raises:
        UsageError: an option is less than ``minimum``.
    """
    for name, value in options.items():
        if value < minimum:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least {minimum}")


def require_none(reason: str, options: Mapping[str, object]) -> None:
    """Raise if options are given that another option makes useless.

    Args:
        reason: why they are useless.
        options: values by name, with underscores; ``None`` or an empty list for one that is not given.

    Raises:
        UsageError: there are any.
    """
    if given := [name for name, value in options.items() if value not in (None, [])]:
        listed = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{reason}; leave out {listed}")


def require_no_settings(root: Path, **options: object) -> None:
    """Raise if ``--resume`` stands beside settings of a new run.

    Raises:
        UsageError: see above.
    """
    made_in = None if root == RUNS else root
    require_none("--resume continues a run with its own settings", {**options, "root": made_in})


def unless(value: Any, default: Any) -> Any:
    """Return a value; ``None`` if it is the default, as if it was not given."""
    return None if value == default else value


def require_port(port: int) -> None:
    """Raise if a port is none.

    Raises:
        UsageError: see above.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port is {port}; expected 0 to 65535")


def print_reports(run: Path, reports: Iterable[Report]) -> None:
    """Print the headline of each report and where it is."""
    for report in reports:
        folder = report.page.parent
        if folder != run:  # several reports in one run
            out.print(str(folder.relative_to(run)), style="bold", markup=False)
        for sentence in report.headline:
            out.print(sentence, markup=False)
        out.print(f"report: {report.page}", soft_wrap=True, markup=False)


def reports_as_data(reports: Iterable[Report]) -> list[dict[str, Any]]:
    """Reports as plain data, for ``--json``."""
    return [
        {"environment": report.environment, "report": str(report.page), "summary": encode(report.summary)}
        for report in reports
    ]


def exit_if_stopped(stopped_by: signal.Signals | None) -> None:
    """End with the exit code of a stopped process: 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        typer.Exit: a signal stopped the run.
    """
    if stopped_by is not None:
        raise typer.Exit(128 + stopped_by)


#: Options of commands that play several agents.
Samples = Annotated[int, typer.Option(metavar="N", help="Episodes per task.")]
Temperature = Annotated[float, typer.Option(metavar="NUMBER", help="Sampling temperature.")]


def read_named(what: str, words: Iterable[str]) -> dict[str, Path]:
    """Read words of the form ``NAME=PATH``.

    Args:
        what: the option or argument, for messages.
        words: as they were typed.

    Raises:
        UsageError: one is not of that form, or a name comes twice.
    """
    named: dict[str, Path] = {}
    for word in words:
        name, found, path = word.partition("=")
        if not (name and found and path):
            raise UsageError(f"{what} {word}: expected NAME=PATH")
        if name in named:
            raise UsageError(f"{what} {name}: given twice")
        named[name] = Path(path)
    return named
