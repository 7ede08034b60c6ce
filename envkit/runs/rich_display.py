"""Progress on screen: a bar per phase on a terminal or in a notebook, plain lines in a log file."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal, TypeAlias, final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from envkit.errors import UsageError
from envkit.runtime.display import Display, Silent

#: Displays that a caller can choose: bars, nothing, or their own.
DisplayChoice: TypeAlias = Display | Literal["rich", "quiet"]

#: Without a terminal, a phase prints its progress this often.
_LINE_EVERY_S = 5.0


@final
class RichDisplay:
    """One progress bar per phase; without a terminal, a line every few seconds.

    Implements `envkit.runtime.display.Display`.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar: TaskID | None = None
        self._name, self._total, self._printed_at = "", 0, 0.0

    def phase(self, name: str, total: int) -> None:
        if self._bar is not None:
            self._progress.stop_task(self._bar)
        self._name, self._total, self._printed_at = name, total, time.monotonic()
        self._bar = self._progress.add_task(escape(name), total=total, facts="")
        self._print_line(f"{name}: {total} to do")

    def advance(self, done: int, facts: str) -> None:
        if self._bar is not None:
            self._progress.update(self._bar, completed=done, facts=escape(facts))
        if time.monotonic() - self._printed_at > _LINE_EVERY_S or done == self._total:
            self._printed_at = time.monotonic()
            self._print_line(f"{self._name} {done}/{self._total}: {facts}")

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, soft_wrap=True)

    def _print_line(self, line: str) -> None:
        if not self._progress.console.is_terminal:
            self.say(line)


@contextmanager
def open_display(choice: DisplayChoice) -> Generator[Display]:
    """Show a display for the length of the block.

    Args:
        choice: ``"rich"`` draws on stderr, ``"quiet"`` shows nothing; a display is used as it is.

    Raises:
        UsageError: another word.
    """
    if choice == "quiet":
        yield Silent()
    elif choice == "rich":
        console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[facts]}"),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            yield RichDisplay(progress)
    elif isinstance(choice, str):
        raise UsageError(f"display is {choice!r}; expected 'rich', 'quiet' or a Display")
    else:
        yield choice
