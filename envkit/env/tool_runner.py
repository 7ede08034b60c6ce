"""Runs the tools of an environment on the host: plain methods, and coroutines with a time limit."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from envkit.errors import UsageError


def run_tool(
    name: str, method: Callable[..., Any], arguments: Mapping[str, Any], timeout_s: float | None
) -> object:
    """Call a tool's bound method and return what it returns.

    Coroutines of all environments share one event loop, in a thread of its own. So a client that a tool keeps
    from one call to the next stays usable, and an environment can be stepped from code that is async itself.
    One that blocks instead of awaiting holds up the others.

    Args:
        name: the tool's name, for messages.
        method: the method; a coroutine function is awaited.
        arguments: by name.
        timeout_s: longest time that a coroutine may take once it has begun; ``None`` for no limit.

    Raises:
        UsageError: a coroutine took too long, was cancelled and has cleaned up; the agent may go on.
    """
    if not inspect.iscoroutinefunction(method):
        return method(**arguments)
    limited = _within(timeout_s, name, method(**arguments))
    future = asyncio.run_coroutine_threadsafe(limited, _loop(os.getpid()))
    try:
        return future.result()
    finally:
        future.cancel()  # if this thread was interrupted


async def _within(timeout_s: float | None, name: str, coroutine: Coroutine[Any, Any, object]) -> object:
    """Await a tool's coroutine.

    Raises:
        UsageError: it took too long.
    """
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await coroutine
    except TimeoutError:
        if not limit.expired():  # the tool's own
            raise
        raise UsageError(f"{name} took longer than {timeout_s:g} s and was stopped.") from None


_MAKING = threading.Lock()


def _loop(pid: int) -> asyncio.AbstractEventLoop:
    """The event loop of a process. A forked one inherits the loop, and not the thread that runs it."""
    with _MAKING:  # the cache alone would let two threads make one each
        return _made_loop(pid)


@functools.cache
def _made_loop(pid: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async tools", daemon=True).start()
    return loop
