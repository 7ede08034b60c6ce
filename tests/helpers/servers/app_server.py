"""The server's application in the test's own process, and a client of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import tiny

from envkit.engine.adapters.pool import AdapterPool
from envkit.engine.early import EarlyLayers
from envkit.engine.running import RunningBatch
from envkit.engine.torch_engine import TorchEngine
from envkit.models import ModelRef
from envkit.serving.app import make_app
from envkit.serving.decoding.routing import RequestRouter
from envkit.serving.decoding.torch_decoder import TorchDecoder
from envkit.serving.guards.access import Access
from envkit.serving.models import Models
from envkit.serving.server import Server, ServerLimits
from envkit.training.learner.base_model import linears_of


def make(model: Path, adapters: Path | None = None, **parts: Any) -> Server:
    """A server of the tiny model, which is not started; ``router`` chooses models with all its layers."""

    def decode(ids: Sequence[int]) -> str:
        return str(tiny.tokenizer().decode(ids))

    base = tiny.plain(ModelRef("tiny", model, ""))
    layers = linears_of(base).keys()  # before the engine puts its own in their place
    engine = TorchEngine(base, (), kv_cache_bytes=2**24, decode=decode)
    pool = AdapterPool(engine.linears, parts.pop("budget_bytes", 2**30))
    decoder = TorchDecoder(RunningBatch(engine, pool, parts.pop("max_rows", 64)))
    if (router := parts.pop("router", None)) is not None:
        parts["routing"] = RequestRouter(router, EarlyLayers(engine, router.layers), decoder, created=7)
    models = Models("tiny", model, {}, adapters, lambda folder: None, lambda: layers)
    limits = ServerLimits(2**20, parts.pop("max_waiting", 64), 8, 1024, len(tiny.tokenizer()))
    return Server(decoder, pool, models, tiny.tokenizer(), limits, parts.pop("access", Access()), **parts)


@contextlib.asynccontextmanager
async def asking(server: Server) -> AsyncGenerator[httpx2.AsyncClient]:
    """Start a server; gives a client of it."""
    app = make_app(server)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://server") as client,
    ):
        yield client
