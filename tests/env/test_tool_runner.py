"""Tools that are coroutines."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from envkit import UsageError
from envkit.env import tool_runner


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


def test_a_time_limit_counts_from_when_the_coroutine_begins() -> None:
    began = threading.Event()

    async def block() -> str:
        began.set()
        time.sleep(0.3)  # another environment's tool, which holds up the loop
        return "Blocked."

    async def quick() -> str:
        await asyncio.sleep(0)
        return "Done."

    with ThreadPoolExecutor(1) as threads:
        blocked = threads.submit(tool_runner.run_tool, "block", block, {}, None)
        assert began.wait(10)
        assert tool_runner.run_tool("quick", quick, {}, 0.05) == "Done."
        assert blocked.result() == "Blocked."


def test_a_tool_that_was_stopped_has_cleaned_up_before_the_agent_goes_on() -> None:
    done: list[str] = []

    async def slow() -> str:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.2)
            done.append("cleaned up")
        return "Never."

    with pytest.raises(UsageError, match=r"slow took longer than 0\.05 s and was stopped\."):
        tool_runner.run_tool("slow", slow, {}, 0.05)
    assert done == ["cleaned up"]


def test_an_error_of_the_cleanup_is_the_tools_own() -> None:
    async def slow() -> str:
        try:
            await asyncio.sleep(30)
        finally:
            raise OSError("not closed")

    with pytest.raises(OSError, match="not closed"):
        tool_runner.run_tool("slow", slow, {}, 0.05)
