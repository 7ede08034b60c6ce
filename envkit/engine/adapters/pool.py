"""Adapters by name: read when they are first asked for, and evicted within a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, final

from envkit.engine.adapters.lora import Linears
from envkit.engine.adapters.updates import Update
from envkit.errors import ContractError, ModelError

#: Reads the updates of one adapter.
Reader: TypeAlias = Callable[[], Mapping[str, Update]]

#: The base model's number.
BASE = -1


@dataclass(slots=True)
class _Loaded:
    """An adapter in memory: its number in the engine, and how many rows use it."""

    number: int
    users: int = 0


@final
class AdapterPool:
    """Adapters of one engine. Thousands may be registered; those in use are in memory.

    Args:
        linears: the engine's layers. The pool numbers their adapters; nobody else may load any.
        budget_bytes: memory for adapters. If it is full, the one whose last use is longest ago is evicted.
    """

    def __init__(self, linears: Linears, budget_bytes: int) -> None:
        self._linears, self._budget_bytes = linears, budget_bytes
        self._readers: dict[str, Reader] = {}
        #: In memory, the least recently used one first.
        self._loaded: dict[str, _Loaded] = {}
        #: Adapters that were unregistered while rows used them.
        self._leaving: set[str] = set()
        #: The adapter to be loaded next; it is being read, or does not fit yet.
        self._next: tuple[str, Future[Mapping[str, Update]]] | None = None
        self._reading = ThreadPoolExecutor(1, "envkit-adapters")
        #: How often an adapter was read into memory, and how often one was evicted for another.
        self.loads = self.evictions = 0
        linears.load([])

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the adapters in memory, the least recently used one first."""
        return tuple(self._loaded)

    @property
    def used_bytes(self) -> int:
        """Memory of the adapters that are loaded, and of the room that is kept for more."""
        return self._linears.adapter_bytes

    def register(self, name: str, read: Reader) -> None:
        """Offer an adapter under a name that is free.

        Raises:
            ContractError: the name is taken, or rows still use an adapter that had it.
        """
        if name in self._readers or name in self._leaving:
            raise ContractError(f"adapter {name!r} is registered already; unregister it first")
        self._readers[name] = read

    def unregister(self, name: str) -> None:
        """Offer an adapter no longer. Rows that use it go on; it leaves memory with the last of them.

        Raises:
            ContractError: there is none of that name.
        """
        if self._readers.pop(name, None) is None:
            raise ContractError(f"no adapter {name!r}")
        if self._next is not None and self._next[0] == name:
            self._drop_next()
        loaded = self._loaded.get(name)
        if loaded is not None and loaded.users:
            self._leaving.add(name)
        elif loaded is not None:
            self._remove(name)

    def acquire(self, name: str | None, *, wait: bool = True) -> int | None:
        """Load an adapter if it is not, and count a user. Another thread reads it.

        Args:
            name: ``None`` is the base.
            wait: until it is read.

        Returns:
            Its number; ``None`` if the adapters that rows use now leave no memory for it, or if it is not
            read yet.

        Raises:
            ModelError: it cannot be read, does not fit the model, or is larger than the budget.
            ContractError: there is none of that name.
        """
        if name is None:
            return BASE
        if name not in self._readers:
            raise ContractError(f"no adapter {name!r}")
        loaded = self._loaded.pop(name, None)
        if loaded is None and (loaded := self._load(name, wait)) is None:
            return None
        self._loaded[name] = loaded  # the most recently used one is last
        loaded.users += 1
        return loaded.number

    def release(self, name: str | None) -> None:
        """Count a user less."""
        if name is None:
            return
        self._loaded[name].users -= 1
        if name in self._leaving and not self._loaded[name].users:
            self._leaving.remove(name)
            self._remove(name)

    def _load(self, name: str, wait: bool) -> _Loaded | None:
        if self._next is None or self._next[0] != name:
            self._drop_next()
            self._next = (name, self._reading.submit(self._readers[name]))
        reading = self._next[1]
        if not (wait or reading.done()):
            return None
        self._next = None
        updates = reading.result()
        self._linears.require_fit(updates)
        if (alone := self._linears.bytes_alone(updates)) > self._budget_bytes:
            needed, budget = -(-alone // 2**20), self._budget_bytes // 2**20
            raise ModelError(
                f"adapter {name!r} takes {needed:,} MB of memory, and adapters may take {budget:,} MB; "
                f"start the server with --adapters-mb {needed} or more"
            )
        count, own = len(self._loaded) + 1, self._linears.weight_bytes_of(updates)
        while True:
            each = self._linears.bytes_each(updates)
            left = self._budget_bytes - own - self._linears.weight_bytes
            if each * count <= left:
                break
            idle = next((other for other, loaded in self._loaded.items() if not loaded.users), None)
            if idle is None:
                self._next = (name, reading)
                return None
            self._remove(idle)
            self.evictions += 1
            count -= 1
        number = self._free_number()
        # With room for a quarter more, a thousand loads copy each adapter a few times, not hundreds of times.
        most = left // max(each, 1)
        self._linears.add(number, updates, min(count + count // 4, most), most)
        self.loads += 1
        return _Loaded(number)

    def _free_number(self) -> int:
        taken = {loaded.number for loaded in self._loaded.values()}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def _drop_next(self) -> None:
        if self._next is not None:
            self._next[1].cancel()
            self._next = None

    def _remove(self, name: str) -> None:
        self._linears.drop(self._loaded.pop(name).number)
