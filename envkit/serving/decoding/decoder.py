"""Protocols between the application and an engine: rows of requests in, tokens out; and adapters."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from envkit.engine.running import Drawn, Failed, RowRequest
from envkit.errors import EnvkitError

if TYPE_CHECKING:
    from envkit.engine.adapters.updates import Update

#: The row's position in the request, and its next token or its failure.
Event: TypeAlias = tuple[int, Drawn | Failed]


class DecoderStopped(EnvkitError):
    """Decoding has ended, by an error or because the server shuts down."""


class Decoder(Protocol):
    """Decodes the rows of all requests together. Used by one event loop."""

    @property
    def error(self) -> Exception | None:
        """The error that ended decoding."""
        ...

    @property
    def running(self) -> int:
        """Rows that are decoded."""
        ...

    @property
    def waiting(self) -> int:
        """Rows that wait to be decoded."""
        ...

    @property
    def cache_tokens(self) -> int:
        """Tokens of keys and values that memory is allocated for."""
        ...

    def start(self) -> None:
        """Start decoding."""
        ...

    def stop(self) -> None:
        """Stop decoding. Rows that still run fail."""
        ...

    def uses(self, adapter: str) -> bool:
        """True if a row waits or runs with an adapter. Only ``prepare`` of `stream` may call it."""
        ...

    def stream(self, requests: Sequence[RowRequest], prepare: Callable[[], None]) -> AsyncGenerator[Event]:
        """Yield the tokens of all rows until each has ended. Closing the generator cancels the others.

        Args:
            requests: the rows.
            prepare: called before a row is submitted, where adapters may be registered. Its error fails the
                row, or is raised before any row begins.

        Raises:
            DecoderStopped: decoding has ended.
        """
        ...


class Adapters(Protocol):
    """Adapters that rows may name; see `envkit.engine.adapters.pool.AdapterPool`."""

    @property
    def loaded(self) -> Sequence[str]:
        """Names of the adapters in memory."""
        ...

    @property
    def used_bytes(self) -> int:
        """Memory of adapters."""
        ...

    @property
    def loads(self) -> int:
        """How often an adapter was read into memory."""
        ...

    @property
    def evictions(self) -> int | None:
        """How often one was evicted for another; ``None`` if the engine does not tell."""
        ...

    def register(self, name: str, read: Callable[[], Mapping[str, Update]]) -> None:
        """Offer an adapter under a name that is free."""
        ...

    def unregister(self, name: str) -> None:
        """Offer an adapter no longer."""
        ...
