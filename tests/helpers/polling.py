"""Polling of a value that a backend still changes in the background after a command has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_until_stable(read: Callable[[], Value]) -> Value:
    """Call ``read`` until it returns the same value five times in a row; give up after ten seconds."""
    last, same = read(), 1
    for _ in range(200):
        if same == 5:
            break
        time.sleep(0.05)
        found = read()
        last, same = found, same + 1 if found == last else 1
    return last
