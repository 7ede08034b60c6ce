"""Measure what it costs to decode rows of many adapters in one batch: speed, and what each row is told."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, final

import torch

from envkit.engine.adapters.pool import AdapterPool
from envkit.engine.adapters.updates import Update
from envkit.engine.protocol import Sampling
from envkit.engine.running import PREFILL_TOKENS, Drawn, Failed, RowRequest, RunningBatch
from envkit.engine.torch_engine import TorchEngine, to_list
from envkit.models import ModelRef
from envkit.training.learner.base_model import linear_shapes, load_base

#: Tokens of a prompt.
_PROMPT: Final = 64
#: Likeliest tokens of a place that are compared.
_TOP: Final = 20
_POOL_BYTES: Final = 4 * 2**30


def random_adapter(shapes: Mapping[str, tuple[int, int]], rank: int, seed: int) -> dict[str, Update]:
    """Make an adapter of linear layers with an effect.

    Args:
        shapes: numbers of outputs and inputs by layer; see `linear_shapes`.
        rank: of every layer.
        seed: of its numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        path: Update(
            torch.randn(rank, inputs, generator=generator) * 0.01,
            torch.randn(outputs, rank, generator=generator) * 0.01,
        )
        for path, (outputs, inputs) in shapes.items()
    }


@final
class ManyAdapters:
    """A base with random adapters, and rows that draw from them. No token ends a row.

    Args:
        ref: the base.
        dtype: of the base.
        adapters: their number.
        rank: of each.
        rows: that are decoded.
        ticks: tokens of each row.
        device: of the base.
    """

    def __init__(
        self,
        ref: ModelRef,
        dtype: str,
        adapters: int,
        rank: int,
        rows: int,
        ticks: int,
        device: str = "cpu",
    ) -> None:
        model, _ = load_base(ref, dtype)
        model.to(device)
        shapes = linear_shapes(model)
        self._engine = TorchEngine(model, [])
        self._pool = AdapterPool(self._engine.linears, _POOL_BYTES)
        for number in range(adapters):
            adapter = random_adapter(shapes, rank, number)
            self._pool.register(f"a{number}", lambda adapter=adapter: adapter)
        self._rows, self._ticks = rows, ticks

    @property
    def adapters_bytes(self) -> int:
        """Memory of the adapters that were asked so far."""
        return self._pool.used_bytes

    def speeds(
        self, together: Sequence[int], one_by_one: Sequence[int], rounds: int
    ) -> dict[str, list[float]]:
        """Measure the speed of decoding, after all prompts are read, in tokens per second of each round.

        Args:
            together: numbers of adapters in one batch.
            one_by_one: numbers of adapters that are decoded one after another instead, each with its rows.
            rounds: in each, the ways are timed in turns, token by token and in a random order: a shared
                machine is faster in one minute than in the next.

        Returns:
            By way: ``"base"``, ``"N together"`` and ``"N one by one"``.
        """
        ways: dict[str, list[Sequence[str | None]]] = {"base": [[None] * self._rows]}
        for count in together:
            ways[f"{count} together"] = [[f"a{row % count}" for row in range(self._rows)]]
        for count in one_by_one:
            ways[f"{count} one by one"] = [[f"a{number}"] * (self._rows // count) for number in range(count)]
        batches = {way: [self.batch(self._rows, 1024) for _ in parts] for way, parts in ways.items()}
        found: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(-1, rounds):
            rows = {
                way: [self._started(batch, names) for batch, names in zip(batches[way], parts, strict=True)]
                for way, parts in ways.items()
            }
            tokens, seconds, order = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0), random.Random(number)
            for _ in range(self._ticks):
                for way in order.sample([*ways], len(ways)):
                    started_s = time.perf_counter()
                    tokens[way] += sum(len(_drawn(batch)) for batch in batches[way])
                    seconds[way] += time.perf_counter() - started_s
            for way in ways:
                if number >= 0:  # the round before fills caches
                    found[way].append(tokens[way] / seconds[way])
                for batch, mine in zip(batches[way], rows[way], strict=True):
                    for row in mine:
                        batch.cancel(row)
                    batch.tick()
        return found

    def largest_difference(self, adapters: int) -> float:
        """Compare each row, in a batch of many adapters, with the same row alone.

        Returns:
            The largest difference of log-probabilities, over the drawn tokens and the likeliest ones of each
            place that both name. Places behind another draw do not count: the rows have read other tokens.
        """
        names = [f"a{row % adapters}" for row in range(self._rows)]
        requests = [replace(request, top_logprobs=_TOP) for request in self.requests(names)]
        together = self._decoded(self.batch(self._rows), requests)
        worst = 0.0
        for request, found in zip(requests, together, strict=True):
            [alone] = self._decoded(self.batch(1), [request])
            for one, other in zip(found, alone, strict=True):
                worst = max(worst, _difference(one, other))
                if one.token != other.token:
                    break
        return worst

    def batch(self, rows: int, prefill_tokens: int = PREFILL_TOKENS) -> RunningBatch:
        """Make a running batch of at most so many rows; see `RunningBatch`."""
        return RunningBatch(self._engine, self._pool, rows, prefill_tokens)

    def requests(self, names: Sequence[str | None], more: int = 0) -> list[RowRequest]:
        """Make a request for each name of an adapter, or for the base where it is ``None``.

        Args:
            names: ``"a0"``, ``"a1"`` and so on.
            more: tokens beside those that are measured.
        """
        generator = torch.Generator().manual_seed(1)
        return [
            RowRequest(
                tuple(to_list(torch.randint(100, 1000, (_PROMPT,), generator=generator))),
                (1, number),
                Sampling(max_new_tokens=self._ticks + more),
                name,
            )
            for number, name in enumerate(names)
        ]

    def _started(self, batch: RunningBatch, names: Sequence[str | None]) -> list[int]:
        """Read the prompts of rows; returns their numbers."""
        rows = [batch.submit(request) for request in self.requests(names, more=len(names) + 8)]
        while len(_drawn(batch)) < len(rows):
            pass
        return rows

    def _decoded(self, batch: RunningBatch, requests: Sequence[RowRequest]) -> list[list[Drawn]]:
        """Decode rows to their ends; returns the tokens of each."""
        rows: dict[int, list[Drawn]] = {batch.submit(request): [] for request in requests}
        while batch.running or batch.waiting:
            for event in _drawn(batch):
                rows[event.row].append(event)
        return [*rows.values()]


def _drawn(batch: RunningBatch) -> list[Drawn]:
    """Advance a batch; returns the tokens that were drawn."""
    found: list[Drawn] = []
    for event in batch.tick():
        if isinstance(event, Failed):
            raise event.error
        found.append(event)
    return found


def _difference(one: Drawn, other: Drawn) -> float:
    """Largest difference of log-probabilities that two draws from one place tell of the same tokens.

    These are the likeliest tokens that both name, and the drawn one if it is the same. Infinite if there are
    none.
    """
    assert one.likely is not None
    assert other.likely is not None
    theirs = dict(other.likely.top)
    found = [abs(value - theirs[token]) for token, value in one.likely.top if token in theirs]
    if one.token == other.token:
        found.append(abs(one.likely.drawn - other.likely.drawn))
    return max(found, default=math.inf)
