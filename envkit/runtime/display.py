"""Progress of long work: the `Display` protocol, one that shows nothing, and one that names its lines."""

from __future__ import annotations

from typing import Protocol, final


class Display(Protocol):
    """Shows the progress of long work, phase by phase; `envkit.runs.rich_display` has one with bars."""

    def phase(self, name: str, total: int) -> None:
        """Begin a new phase with ``total`` units of work."""
        ...

    def advance(self, done: int, facts: str) -> None:
        """Report that ``done`` units are finished; ``facts`` is a short text, such as reward and tokens/s."""
        ...

    def say(self, line: str) -> None:
        """Print a line of plain text that stays on screen."""
        ...


class Silent:
    """A `Display` that shows nothing."""

    def phase(self, name: str, total: int) -> None: ...

    def advance(self, done: int, facts: str) -> None: ...

    def say(self, line: str) -> None: ...


@final
class Named:
    """A `Display` that puts a name before the facts and lines of work that is shown beside other work.

    Args:
        name: such as ``"seed 1"``.
        display: shows them.
    """

    def __init__(self, name: str, display: Display) -> None:
        self._name, self._display = name, display

    def phase(self, name: str, total: int) -> None:
        self._display.phase(name, total)

    def advance(self, done: int, facts: str) -> None:
        self._display.advance(done, f"{self._name}: {facts}" if facts else self._name)

    def say(self, line: str) -> None:
        self._display.say(f"{self._name}: {line}")
