"""Progress of long work: the `Display` protocol, and one that shows nothing."""

from __future__ import annotations

from typing import Protocol


class Display(Protocol):
    """Shows the progress of long work, phase by phase; `envkit.api.rich_display` has one with bars."""

    def phase(self, name: str, total: int) -> None:
        """Begin a new phase with ``total`` units of work."""
        ...

    def advance(self, done: int, facts: str) -> None:
        """Report that ``done`` units are finished; ``facts`` is a short text, such as reward and tokens/s."""
        ...

    def say(self, line: str) -> None:
        """Print a line that stays on screen."""
        ...


class Silent:
    """A `Display` that shows nothing."""

    def phase(self, name: str, total: int) -> None: ...

    def advance(self, done: int, facts: str) -> None: ...

    def say(self, line: str) -> None: ...
