"""Results that several episodes share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar, cast, final

Value = TypeVar("Value")


@final
class Shared:
    """Results that the members of a group share, computed once. Thread-safe, bounded.

    Args:
        size: most that are kept; the longest unused go first.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._entries: OrderedDict[object, tuple[threading.Lock, list[object]]] = OrderedDict()

    def forget(self) -> None:
        """Let go of all."""
        with self._lock:
            self._entries.clear()

    def get(self, key: object, make: Callable[[], Value]) -> Value:
        """What ``make`` gave the first time it was called for the key."""
        with self._lock:
            lock, box = self._entries.setdefault(key, (threading.Lock(), []))
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)
        with lock:
            if not box:
                box.append(make())
            return cast("Value", box[0])
