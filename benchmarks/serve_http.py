"""Streams over HTTP: one client, and sixteen, of ``envkit serve`` and of vLLM's own server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import glob
import inspect
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
import torch
from bounds import Found
from serve_shared import ROUNDS, ServerProcess, envkit_server, running, served_model
from train_generate import VLLM_PYTHON

from envkit.models import ModelRef

CLIENTS, REQUESTS_EACH, SINGLE = 16, 2, 3
NEW, PROMPT_CHARACTERS = int(os.environ.get("NEW", "128")), 400
_PORTS: Final = {"envkit": 18431, "vLLM": 18432}
#: Text that the model continues for long. Every request starts elsewhere in it, so that no cache knows it.
_SOURCE: Final = inspect.getsource(argparse)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The measurements of one request."""

    first_s: float
    tokens: int


async def _ask(client: httpx2.AsyncClient, server: ServerProcess, start: int) -> _Asked:
    """Stream one answer; at most ``NEW`` tokens."""
    body = {
        "model": server.model,
        "prompt": _SOURCE[start : start + PROMPT_CHARACTERS],
        "max_tokens": NEW,
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started_s, first_s, last = time.perf_counter(), 0.0, ""
    async with client.stream("POST", server.url + "/v1/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            first_s = first_s or time.perf_counter() - started_s
            last = line if '"usage"' in line else last
    usage: Any = json.loads(last.removeprefix("data: "))["usage"]
    return _Asked(first_s, int(usage["completion_tokens"]))


async def _load(server: ServerProcess, clients: int, each: int, seed: int) -> tuple[float, list[_Asked]]:
    """Let clients ask one request after another; returns tokens per second and what they found."""
    dice = random.Random(seed)
    starts = [[dice.randrange(len(_SOURCE) - PROMPT_CHARACTERS) for _ in range(each)] for _ in range(clients)]

    async def ask_all(client: httpx2.AsyncClient, mine: Sequence[int]) -> list[_Asked]:
        return [await _ask(client, server, start) for start in mine]

    async with httpx2.AsyncClient(timeout=600) as client:
        await _ask(client, server, 0)  # opens the connection and wakes up the server
        started_s = time.perf_counter()
        found = await asyncio.gather(*(ask_all(client, mine) for mine in starts))
        seconds = time.perf_counter() - started_s
    asked = [one for mine in found for one in mine]
    return sum(one.tokens for one in asked) / seconds, asked


@contextlib.contextmanager
def _vllm(ref: ModelRef, log: Path) -> Generator[ServerProcess]:
    """Run vLLM's own server, compiled and with all cores."""
    # The allocator that vLLM's documentation recommends, if it is installed.
    preloaded = glob.glob("/usr/lib/*/libtcmalloc_minimal.so.4")[:1]
    environment = {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        # By default vLLM keeps one core free and so has fewer threads than envkit.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "LD_PRELOAD": ":".join(preloaded),
    }
    port = _PORTS["vLLM"]
    command = [VLLM_PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", ref.path]
    command += ["--served-model-name", "base", "--dtype", "bfloat16", "--max-model-len", "2048"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    url = f"http://127.0.0.1:{port}"
    with running([*map(str, command)], environment, url, "base", log) as server:
        yield server


def http() -> Found:
    """Stream answers of the base in bfloat16, in rounds that alternate between the servers."""
    ref = served_model()
    found: dict[str, list[float]] = {}
    firsts_ms: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers: dict[str, ServerProcess] = {}
        if VLLM_PYTHON.exists():  # first, because it needs extra memory while it starts
            servers["vLLM"] = stack.enter_context(_vllm(ref, Path(folder, "vllm.log")))
        else:
            print("vLLM is not measured: make test-vllm would install it")
        servers["envkit"] = stack.enter_context(
            envkit_server(ref, _PORTS["envkit"], Path(folder, "envkit.log"))
        )
        for number in range(ROUNDS):
            order = [*servers]
            random.Random(number).shuffle(order)
            for way in order:
                with contextlib.ExitStack() as others:
                    for other in servers.keys() - {way}:
                        others.enter_context(servers[other].paused())
                    for load, clients, each in (
                        ("1 client", 1, SINGLE),
                        (f"{CLIENTS} clients", CLIENTS, REQUESTS_EACH),
                    ):
                        speed, asked = asyncio.run(_load(servers[way], clients, each, number))
                        found.setdefault(f"{load}, {way}, tokens/s", []).append(speed)
                        times_ms = [1000 * one.first_s for one in asked]
                        firsts_ms.setdefault(f"{load}, {way}", []).extend(times_ms)
    for name, times_ms in firsts_ms.items():
        found[f"{name}, median first token, ms"] = [statistics.median(times_ms)]
        found[f"{name}, p99 first token, ms"] = [_p99(times_ms)]
    return dict(sorted(found.items()))


def _p99(values: Sequence[float]) -> float:
    """The 99th percentile by nearest rank: of fewer than 100 values, the largest."""
    return sorted(values)[-(-len(values) * 99 // 100) - 1]
