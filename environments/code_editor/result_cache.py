"""A cache for results that several episodes share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar, cast, final

Value = TypeVar("Value")


@final
class ResultCache:
    """Computes each result once, even if several threads ask at the same time. Thread-safe.

    Args:
        size: most results to keep; the least recently used are dropped first.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._entries: OrderedDict[object, tuple[threading.Lock, list[object]]] = OrderedDict()

    def clear(self) -> None:
        """Drop all results."""
        with self._lock:
            self._entries.clear()

    def get(
        self, key: object, make: Callable[[], Value], keep: Callable[[Value], bool] = lambda _: True
    ) -> Value:
        """Return the result for a key.

        Args:
            key: equal keys have the same result.
            make: computes it, if it is not cached. An exception is not cached.
            keep: False for a result that is not cached either.
        """
        with self._lock:
            lock, box = self._entries.setdefault(key, (threading.Lock(), []))
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)
        with lock:
            if box:
                return cast("Value", box[0])
            value = make()
            if keep(value):
                box.append(value)
            return value
