"""The running batch itself: speed with many adapters, and the logits of its rows."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from typing import Any, Final

import torch
from bounds import Found
from serve_shared import ROUNDS, linear_shapes, random_adapter, served_model
from train_shared import dtype

from envkit.engine.adapter_pool import AdapterPool
from envkit.engine.protocol import Sampling
from envkit.engine.running import Drawn, RowRequest, RunningBatch
from envkit.engine.torch_engine import TorchEngine
from envkit.training.base_model import load_base

ROWS, ADAPTERS, RANK = int(os.environ.get("ROWS", "64")), 32, 8
PROMPT, TICKS = 64, int(os.environ.get("TICKS", "16"))
_TOGETHER: Final = f"{ADAPTERS} adapters together"


def _engine(dtype: str) -> tuple[TorchEngine, AdapterPool]:
    """An engine with all adapters; no token ends a row."""
    model, _ = load_base(served_model(), dtype)
    shapes = linear_shapes(model)
    engine = TorchEngine(model, [])
    pool = AdapterPool(engine.linears, 4 * 2**30)
    for number in range(ADAPTERS):
        adapter = random_adapter(shapes, RANK, number)
        pool.register(f"a{number}", lambda adapter=adapter: adapter)
    return engine, pool


def _requests(names: Sequence[str | None], new: int) -> list[RowRequest]:
    generator = torch.Generator().manual_seed(1)
    return [
        RowRequest(
            tuple(torch.randint(100, 1000, (PROMPT,), generator=generator).tolist()),
            (1, number),
            Sampling(max_new_tokens=new),
            name,
        )
        for number, name in enumerate(names)
    ]


def _tokens_per_s(batches: Sequence[RunningBatch], names: Sequence[Sequence[str | None]]) -> float:
    """Speed of decoding once all prompts are read; one batch after another."""
    numbers: list[list[int]] = []
    for batch, mine in zip(batches, names, strict=True):
        numbers.append([batch.submit(request) for request in _requests(mine, TICKS + len(mine) + 8)])
        while sum(isinstance(event, Drawn) for event in batch.tick()) < len(mine):
            pass
    started_s = time.perf_counter()
    drawn = sum(len(batch.tick()) for batch in batches for _ in range(TICKS))
    seconds = time.perf_counter() - started_s
    for batch, mine in zip(batches, numbers, strict=True):
        for number in mine:
            batch.cancel(number)
        batch.tick()
    return drawn / seconds


def mixed() -> Found:
    """Decode rows of the base, of 32 adapters in one batch, and of one adapter after another."""
    engine, pool = _engine(dtype())
    whole = RunningBatch(engine, pool, ROWS, prefill_tokens=1024)
    # Each adapter has a batch of its own, so that all prompts are read before the time is taken.
    parts = [RunningBatch(engine, pool, ROWS, prefill_tokens=1024) for _ in range(ADAPTERS)]
    names = [f"a{number}" for number in range(ADAPTERS)]
    each = ROWS // ADAPTERS
    ways: dict[str, tuple[Sequence[RunningBatch], Sequence[Sequence[str | None]]]] = {
        "base": ([whole], [[None] * ROWS]),
        _TOGETHER: ([whole], [names * each]),
        "one after another": (parts, [[name] * each for name in names]),
    }
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(-1, ROUNDS):
        order = list(ways)
        random.Random(number).shuffle(order)
        for way in order:
            speed = _tokens_per_s(*ways[way])
            if number >= 0:  # the round before fills caches
                speeds[way].append(speed)
    found = {f"{way}, tokens/s": found for way, found in speeds.items()}
    return {**found, "memory of adapters, MB": [pool.used_bytes / 2**20]}


def logits() -> Found:
    """Compare the logits of each row with those of the same row alone, in float32."""
    engine, pool = _engine("float32")
    names: list[str | None] = [f"a{number % ADAPTERS}" for number in range(ROWS)]
    requests = _requests(names, TICKS)
    together = _all_logits(RunningBatch(engine, pool, ROWS), requests)
    worst, compared = 0.0, 0
    for request, (ids, found) in zip(requests, together, strict=True):
        [(ids_alone, expected)] = _all_logits(RunningBatch(engine, pool, 1), [request])
        # After another draw, the rows have read other tokens.
        same = next((at for at in range(TICKS) if ids[at] != ids_alone[at]), TICKS - 1) + 1
        worst = max(worst, float((torch.stack(found[:same]) - torch.stack(expected[:same])).abs().max()))
        compared += same
    return {"largest difference": [worst], "share of tokens compared": [compared / (ROWS * TICKS)]}


def _all_logits(
    batch: RunningBatch, requests: Sequence[RowRequest]
) -> list[tuple[list[int], list[torch.Tensor]]]:
    """Decode rows to their ends; returns ids and logits (V) of each row's tokens."""
    ids: dict[int, list[int]] = {batch.submit(request): [] for request in requests}
    seen: dict[int, list[torch.Tensor]] = {number: [] for number in ids}
    draw: Any = batch._draw

    def recording(rows: Sequence[Any], logits_RV: torch.Tensor) -> Any:
        for row, logits_V in zip(rows, logits_RV, strict=True):
            seen[row.number].append(logits_V.clone())
        return draw(rows, logits_RV)

    batch._draw = recording  # the batch tells log-probabilities of single tokens only
    while batch.running or batch.waiting:
        for event in batch.tick():
            assert isinstance(event, Drawn)
            ids[event.row].append(event.token)
    return [(ids[number], seen[number]) for number in ids]
