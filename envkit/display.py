"""What long work shows while it runs."""

from __future__ import annotations

from typing import Protocol


class Display(Protocol):
    """A live view of the phases of long work. The command line has one; tests have a silent one."""

    def phase(self, name: str, total: int) -> None:
        """A new phase begins, with ``total`` units of work."""
        ...

    def advance(self, done: int, facts: str) -> None:
        """``done`` units are finished; ``facts`` is a short line (reward, tokens/s ...)."""
        ...

    def say(self, line: str) -> None:
        """A line that stays on screen."""
        ...


class Silent:
    """Shows nothing."""

    def phase(self, name: str, total: int) -> None: ...

    def advance(self, done: int, facts: str) -> None: ...

    def say(self, line: str) -> None: ...
