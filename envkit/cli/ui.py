"""What commands print: a live display for people, plain lines for logs, one JSON object for programs."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from types import FrameType
from typing import Any, cast, final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

#: Progress and messages; results go to stdout.
err = Console(stderr=True, highlight=False)
out = Console(highlight=False)


def emit(data: Any) -> None:
    """One JSON object on stdout, for ``--json``; numbers that are not finite become null."""
    print(json.dumps(_plain(data), allow_nan=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@final
class LiveDisplay:
    """One progress bar per phase on a terminal; a line every few seconds elsewhere.

    Implements `envkit.display.Display`.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._name, self._total, self._spoken = "", 0, 0.0

    def phase(self, name: str, total: int) -> None:
        self._finish()
        name = escape(name)  # of an agent, perhaps: text, not a style
        self._name, self._total, self._spoken = name, total, time.monotonic()
        self._task = self._progress.add_task(name, total=total, facts="")
        self._plain(f"{name}: {total} to do")

    def advance(self, done: int, facts: str) -> None:
        facts = escape(facts)
        if self._task is not None:
            self._progress.update(self._task, completed=done, facts=facts)
        if time.monotonic() - self._spoken > 5 or done == self._total:
            self._spoken = time.monotonic()
            self._plain(f"{self._name} {done}/{self._total}: {facts}")

    def say(self, line: str) -> None:
        self._progress.console.print(line)

    def _finish(self) -> None:
        if self._task is not None:
            self._progress.stop_task(self._task)

    def _plain(self, line: str) -> None:
        if not self._progress.console.is_terminal:
            self._progress.console.print(line)


@contextmanager
def live() -> Generator[LiveDisplay]:
    """A display that is on screen for the length of the block."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        yield LiveDisplay(progress)


@contextmanager
def interruptible() -> Generator[Callable[[], bool]]:
    """Ctrl-C once asks to stop at the next safe point; twice stops now.

    Yields a function that says whether to go on.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        err.print("[yellow]stopping after this step; Ctrl-C again to stop now[/]")

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield lambda: not stop.is_set()
    finally:
        signal.signal(signal.SIGINT, before)
