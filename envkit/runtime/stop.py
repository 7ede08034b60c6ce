"""Stop requests: long work polls a `ShouldStop` between short units and raises `Stopped`."""

from __future__ import annotations

from collections.abc import Callable

from envkit.errors import Stopped

#: True once the user has asked to stop. Cheap and thread-safe; stays True.
ShouldStop = Callable[[], bool]


def never() -> bool:
    """A `ShouldStop` for work that nobody interrupts."""
    return False


def raise_if_stopped(should_stop: ShouldStop) -> None:
    """Raise if the user has asked to stop.

    Raises:
        Stopped: they have.
    """
    if should_stop():
        raise Stopped("stopped by the user")
