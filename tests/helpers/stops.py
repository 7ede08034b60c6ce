"""Stop requests at chosen moments, for tests."""

from __future__ import annotations

from itertools import count
from typing import final

from envkit.runtime.display import Display
from envkit.runtime.stop import ShouldStop


def stop_after(polls: int) -> ShouldStop:
    """A stop request that is made after so many polls, and stays."""
    polled = count()
    return lambda: next(polled) >= polls


@final
class StopWhenShown(Display):
    """A display that makes the stop request when so many units of work have been shown.

    Args:
        units: calls of `advance` before the request.
    """

    def __init__(self, units: int) -> None:
        self._left = units

    def should_stop(self) -> bool:
        """The stop request."""
        return self._left <= 0

    def phase(self, name: str, total: int) -> None: ...

    def advance(self, done: int, facts: str) -> None:
        self._left -= 1

    def say(self, line: str) -> None: ...
