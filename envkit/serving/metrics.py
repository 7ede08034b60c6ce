"""Prometheus metrics of the server. Labels are model ids, never keys."""

from __future__ import annotations

from typing import final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from envkit.engine.adapter_pool import AdapterPool
from envkit.serving.ledger import Entry
from envkit.serving.worker import Worker

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)


@final
class Metrics:
    """Counts requests, tokens and times; reads the rest from worker and pool when it is asked for."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, worker: Worker, pool: AdapterPool) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("envkit_requests", "Requests.", ("model", "outcome"), registry=registry)
        self._tokens = Counter("envkit_tokens", "Tokens.", ("model", "kind"), registry=registry)
        self._first = Histogram(
            "envkit_first_token_seconds", "Time to the first token.", registry=registry, buckets=_SECONDS
        )
        self._whole = Histogram(
            "envkit_request_seconds", "Time of a request.", registry=registry, buckets=_SECONDS
        )
        for name, text, read in (
            ("envkit_rows_running", "Rows in the running batch.", lambda: worker.running),
            ("envkit_rows_waiting", "Rows that wait.", lambda: worker.waiting),
            ("envkit_cache_tokens", "Tokens of allocated KV cache.", lambda: worker.cache_tokens),
            ("envkit_adapters_loaded", "Adapters in memory.", lambda: len(pool.loaded)),
            ("envkit_adapter_bytes", "Memory of adapters.", lambda: pool.used_bytes),
            ("envkit_adapter_loads", "Adapters read so far.", lambda: pool.loads),
            ("envkit_adapter_evictions", "Adapters evicted so far.", lambda: pool.evictions),
        ):
            Gauge(name, text, registry=registry).set_function(read)

    def count(self, entry: Entry, first_s: float | None) -> None:
        """Count a request that has ended; ``first_s`` is the time to its first token."""
        self._requests.labels(entry.model, entry.outcome).inc()
        self._tokens.labels(entry.model, "prompt").inc(entry.prompt_tokens)
        self._tokens.labels(entry.model, "completion").inc(entry.completion_tokens)
        self._whole.observe(entry.seconds)
        if first_s is not None:
            self._first.observe(first_s)

    def render(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)
