"""Runs the tools of an environment on the host: plain methods, coroutines, and either with a time limit."""

from __future__ import annotations

import asyncio
import functools
import inspect
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from envkit.errors import SandboxError, UsageError


def run_tool(
    name: str, method: Callable[..., Any], arguments: Mapping[str, Any], timeout_s: float | None
) -> object:
    """Call a tool's bound method and return what it returns.

    Coroutines of all environments share one event loop, in a thread of its own. So a client that a tool keeps
    from one call to the next stays usable, and an environment can be stepped from code that is async itself.

    Args:
        name: the tool's name, for messages.
        method: the method; a coroutine function is awaited.
        arguments: by name.
        timeout_s: longest time that the call may take; ``None`` for no limit.

    Raises:
        UsageError: a coroutine took too long and was cancelled; the agent may go on.
        SandboxError: a plain method took too long. It cannot be stopped, so the episode cannot go on.
    """
    if inspect.iscoroutinefunction(method):
        return _awaited(name, method, arguments, timeout_s)
    if timeout_s is None:
        return method(**arguments)
    done: queue.SimpleQueue[tuple[object, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((method(**arguments), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=run, name=f"tool {name}", daemon=True).start()
    try:
        result, error = done.get(timeout=timeout_s)
    except queue.Empty:
        raise SandboxError(
            f"tool {name} has not returned within {timeout_s:g} s, and may still run"
        ) from None
    if error is not None:
        raise error
    return result


def _awaited(
    name: str, method: Callable[..., Any], arguments: Mapping[str, Any], timeout_s: float | None
) -> object:
    future = asyncio.run_coroutine_threadsafe(method(**arguments), _loop())
    try:
        return future.result(timeout_s)
    except TimeoutError:
        if future.done():  # the tool's own
            raise
        raise UsageError(f"{name} took longer than {timeout_s:g} s and was stopped.") from None
    finally:
        future.cancel()  # also if this thread was interrupted


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async tools", daemon=True).start()
    return loop
