"""Decoding a running batch: 64 rows of the base, of 32 adapters together, and of one adapter after another.

``MODEL=smollm2-135m-q4 ROWS=32 make bench SECTION=serve`` takes another model or another number of rows.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from envkit.engine.adapter_pool import AdapterPool
from envkit.engine.lora import Update
from envkit.engine.protocol import Sampling
from envkit.engine.running import Drawn, RowRequest, RunningBatch
from envkit.engine.torch_engine import TorchEngine
from envkit.models import DEFAULT_MODEL, resolve
from envkit.studies.machine import cpu_dtype, use_threads
from envkit.training.base_model import load_base

ROWS, ADAPTERS, RANK = int(os.environ.get("ROWS", "64")), 32, 8
PROMPT, TICKS, ROUNDS = 64, int(os.environ.get("TICKS", "16")), int(os.environ.get("ROUNDS", "3"))


def adapter(model: Any, seed: int) -> dict[str, Update]:
    """A random adapter of all linear layers."""
    generator = torch.Generator().manual_seed(seed)
    head = model.get_output_embeddings()
    return {
        path: Update(
            torch.randn(RANK, module.in_features, generator=generator) * 0.01,
            torch.randn(module.out_features, RANK, generator=generator) * 0.01,
        )
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def tokens_per_second(batch: RunningBatch, names: Sequence[str | None]) -> float:
    """Speed of decoding once all prompts are read."""
    for number, name in enumerate(names):
        prompt = tuple(torch.randint(100, 1000, (PROMPT,)).tolist())
        sampling = Sampling(max_new_tokens=TICKS + len(names) + 8)
        batch.submit(RowRequest(prompt, (1, number), sampling, name))
    while sum(isinstance(event, Drawn) for event in batch.tick()) < len(names):
        pass
    started = time.perf_counter()
    drawn = sum(len(batch.tick()) for _ in range(TICKS))
    seconds = time.perf_counter() - started
    for number in range(batch._count + 1):
        batch.cancel(number)
    batch.tick()
    return drawn / seconds


def main() -> None:
    threads = use_threads()
    model_id, dtype = os.environ.get("MODEL", DEFAULT_MODEL), cpu_dtype()
    model, _ = load_base(resolve(model_id), dtype)
    engine = TorchEngine(model, [])  # no token ends a row
    pool = AdapterPool(engine.linears, 4 * 2**30)
    for number in range(ADAPTERS):
        updates = adapter(model, number)
        pool.register(f"a{number}", lambda updates=updates: updates)
    batch = RunningBatch(engine, pool, ROWS, prefill_tokens=1024)
    mixed = [f"a{number % ADAPTERS}" for number in range(ROWS)]
    each = ROWS // ADAPTERS
    speeds: dict[str, list[float]] = {"base": [], "32 adapters together": [], "one after another": []}
    for _ in range(ROUNDS):
        speeds["base"].append(tokens_per_second(batch, [None] * ROWS))
        speeds["32 adapters together"].append(tokens_per_second(batch, mixed))
        speeds["one after another"].append(tokens_per_second(batch, ["a0"] * each))
    print(f"{model_id}, {dtype}, {threads} threads, {ROWS} rows, {ADAPTERS} adapters of rank {RANK}")
    base = statistics.median(speeds["base"])
    for name, found in speeds.items():
        middle = statistics.median(found)
        spread = f"{min(found):.1f} to {max(found):.1f}"
        print(f"{name:22} {middle:8.1f} tokens/s ({spread}), {middle / base:.2f} of base")
    print(f"memory of adapters: {pool.used_bytes / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
