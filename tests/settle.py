"""Waiting for what a backend still makes ready, or clears away, behind a command that has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Measure = TypeVar("Measure")


def settled(measure: Callable[[], Measure]) -> Measure:
    """What ``measure`` gives five times in a row; after ten seconds of change, what it gave last."""
    last, same = measure(), 1
    for _ in range(200):
        if same == 5:
            break
        time.sleep(0.05)
        found = measure()
        last, same = found, same + 1 if found == last else 1
    return last
