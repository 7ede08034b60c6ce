"""Prometheus metrics of the server. Labels are ids of models that exist, and statuses; never keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from envkit.serving.decoding.decoder import Adapters, Decoder
from envkit.serving.ledger import Entry

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)
_ROUTING_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


@final
class Metrics:
    """Counts requests, tokens and times; reads the rest from decoder and adapters when asked."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, decoder: Decoder, adapters: Adapters) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("envkit_requests", "Requests.", ("model", "outcome"), registry=registry)
        self._tokens = Counter("envkit_tokens", "Tokens.", ("model", "kind"), registry=registry)
        self._errors = Counter(
            "envkit_errors", "Responses with an error status.", ("status",), registry=registry
        )
        self._first = Histogram(
            "envkit_first_token_seconds",
            "Time to the first token.",
            ("model",),
            registry=registry,
            buckets=_SECONDS,
        )
        self._queue = Histogram(
            "envkit_queue_seconds", "Time until a row was admitted.", registry=registry, buckets=_SECONDS
        )
        self._whole = Histogram(
            "envkit_request_seconds", "Time of a request.", registry=registry, buckets=_SECONDS
        )
        self._routed = Counter(
            "envkit_routed", "Requests that the router sent to a model.", ("model",), registry=registry
        )
        self._routing = Histogram(
            "envkit_routing_seconds",
            "Time to read a prompt for the router.",
            registry=registry,
            buckets=_ROUTING_SECONDS,
        )
        for name, text, read in (
            ("envkit_rows_running", "Rows in the running batch.", lambda: decoder.running),
            ("envkit_rows_waiting", "Rows that wait.", lambda: decoder.waiting),
            ("envkit_cache_tokens", "Tokens of allocated KV cache.", lambda: decoder.cache_tokens),
            ("envkit_adapters_loaded", "Adapters in memory.", lambda: len(adapters.loaded)),
            ("envkit_adapter_bytes", "Memory of adapters.", lambda: adapters.used_bytes),
        ):
            Gauge(name, text, registry=registry).set_function(read)
        registry.register(_AdapterCounts(adapters))

    def count(self, entry: Entry, first_s: float | None, waited_s: float) -> None:
        """Count a request that has ended.

        Args:
            entry: its row of the ledger.
            first_s: seconds to its first token; ``None`` if it has none.
            waited_s: seconds of these in the queue.
        """
        self._requests.labels(entry.model, entry.outcome).inc()
        self._tokens.labels(entry.model, "prompt").inc(entry.prompt_tokens)
        self._tokens.labels(entry.model, "completion").inc(entry.completion_tokens)
        self._whole.observe(entry.seconds)
        if first_s is not None:
            self._first.labels(entry.model).observe(first_s)
            self._queue.observe(waited_s)

    def count_routed(self, model: str, seconds: float) -> None:
        """Count a request that the router sent to a model, and the time to read its prompt for that."""
        self._routed.labels(model).inc()
        self._routing.observe(seconds)

    def count_error(self, status: int) -> None:
        """Count a response with an error status."""
        self._errors.labels(status).inc()

    def render(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)


@final
class _AdapterCounts(Collector):
    """Reads how often adapters were loaded and evicted."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counts as they are now."""
        yield CounterMetricFamily("envkit_adapter_loads", "Adapters read.", self._adapters.loads)
        if (evictions := self._adapters.evictions) is not None:
            yield CounterMetricFamily("envkit_adapter_evictions", "Adapters evicted.", evictions)


@final
class ErrorCount:
    """Counts responses with an error status, also those that other middleware sends.

    Args:
        app: the application.
        count: gets each status.
    """

    def __init__(self, app: ASGIApp, count: Callable[[int], None]) -> None:
        self._app, self._count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def count_and_send(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, count_and_send)
        except Exception:  # answered with 500 outside of all middleware
            self._count(500)
            raise
