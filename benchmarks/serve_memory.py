"""Memory of ``envkit serve``: with a thousand adapters registered, and with eight specialists."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Final

import httpx2
from bounds import Found
from serve_shared import (
    ServerProcess,
    envkit_server,
    save_adapter,
    served_model,
    shapes_of,
)

from envkit.studies.multiplexing.measure import random_adapter

REGISTERED, FILES, BUDGET_MB = 1000, 8, 256
#: How many of the registered adapters are asked.
ASKED = int(os.environ.get("ASKED", str(REGISTERED)))
SPECIALISTS, SPECIALIST_RANK, RANK = 8, 4, 8
_PORT: Final = 18433


def _ask(server: ServerProcess, models: Sequence[str], new: int = 8) -> None:
    """Ask all models, sixteen at a time."""

    async def ask_all() -> None:
        gate = asyncio.Semaphore(16)
        async with httpx2.AsyncClient(timeout=600) as client:

            async def ask(model: str) -> None:
                body = {"model": model, "prompt": "def add(a, b):", "max_tokens": new, "temperature": 0}
                async with gate:
                    (await client.post(server.url + "/v1/completions", json=body)).raise_for_status()

            await asyncio.gather(*map(ask, models))

    asyncio.run(ask_all())


@contextlib.contextmanager
def _adapters(count: int, files: int, rank: int) -> Generator[Path]:
    """A folder of adapters, which share the files of a few."""
    shapes = shapes_of(served_model())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(count):
            path = folder / f"a{number}"
            if number < files:
                save_adapter(path, random_adapter(shapes, rank, number))
                continue
            path.mkdir()
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                os.link(folder / f"a{number % files}" / file, path / file)
        yield folder


def _peak_mb(adapters: Path | None, models: Sequence[str], *options: str) -> float:
    """Largest memory of a server that has answered the base and these models."""
    with tempfile.TemporaryDirectory() as folder:
        extra = [] if adapters is None else ["--adapters", adapters]
        log = Path(folder, "log")
        with envkit_server(served_model(), _PORT, log, *extra, *options) as server:
            _ask(server, ["base"] * 64)
            _ask(server, models)
            return server.peak_mb


def registered() -> Found:
    """Register a thousand adapters of rank 8, ask them all, and compare the peak with base and budget."""
    with _adapters(REGISTERED, FILES, RANK) as folder:
        base = _peak_mb(None, [])
        models = [f"a{number}" for number in range(ASKED)]
        peak = _peak_mb(folder, models, "--adapters-mb", str(BUDGET_MB))
    return {"base, MB": [base], "peak, MB": [peak], "base and budget, MB": [base + BUDGET_MB]}


def specialists() -> Found:
    """Answer with eight adapters of rank 4, and compare the peak with that of the base alone."""
    names = [f"a{number}" for number in range(SPECIALISTS)]
    with _adapters(SPECIALISTS, SPECIALISTS, SPECIALIST_RANK) as folder:
        base, peak = _peak_mb(None, ["base"] * SPECIALISTS * 4), _peak_mb(folder, names * 4)
    return {"base, MB": [base], f"with {SPECIALISTS} specialists, MB": [peak]}
