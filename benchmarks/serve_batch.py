"""The running batch itself: speed with many adapters, and the logits of its rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import torch
from bounds import Found
from serve_shared import ROUNDS, served_model
from train_shared import dtype

from envkit.engine.running import Drawn, RowRequest, RunningBatch
from envkit.studies.multiplexing.measure import ManyAdapters

ROWS, ADAPTERS, RANK = int(os.environ.get("ROWS", "64")), 32, 8
TICKS = int(os.environ.get("TICKS", "16"))
_WAYS: Final = {
    "base": "base",
    f"{ADAPTERS} adapters together": f"{ADAPTERS} together",
    "one after another": f"{ADAPTERS} one by one",
}


def mixed() -> Found:
    """Decode rows of the base, of 32 adapters in one batch, and of one adapter after another."""
    many = ManyAdapters(served_model(), dtype(), ADAPTERS, RANK, ROWS, TICKS)
    speeds = many.speeds([ADAPTERS], [ADAPTERS], ROUNDS)
    found = {f"{name}, tokens/s": speeds[way] for name, way in _WAYS.items()}
    return {**found, "memory of adapters, MB": [many.adapters_bytes / 2**20]}


def logits() -> Found:
    """Compare the logits of each row with those of the same row alone, in float32."""
    many = ManyAdapters(served_model(), "float32", ADAPTERS, RANK, ROWS, TICKS)
    requests = many.requests([f"a{number % ADAPTERS}" for number in range(ROWS)])
    together = _all_logits(many.batch(ROWS), requests)
    worst, compared = 0.0, 0
    for request, (ids, found) in zip(requests, together, strict=True):
        [(ids_alone, expected)] = _all_logits(many.batch(1), [request])
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
