"""Tools that are coroutines."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from envkit import tool_runner


async def _own_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_threads_whose_first_coroutines_start_together_share_a_loop() -> None:
    barrier = threading.Barrier(8)

    def first(_: int) -> object:
        barrier.wait()
        return tool_runner.run_tool("own_loop", _own_loop, {}, None)

    for _ in range(20):
        tool_runner._made_loop.cache_clear()
        with ThreadPoolExecutor(8) as threads:
            assert len({id(loop) for loop in threads.map(first, range(8))}) == 1
