"""The thread that decodes: requests of an event loop in, tokens out."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, final

from envkit.engine.running import Drawn, Failed, RowRequest, RunningBatch
from envkit.errors import ContractError, EnvkitError
from envkit.serving.decoding.decoder import DecoderStopped, Event

_T = TypeVar("_T")


def in_thread_that_ends(work: Callable[[], _T]) -> _T:
    """Return the result of some work with torch, without keeping its OpenMP threads.

    Every thread that computes gets OpenMP threads of its own, which live as long as it does. When there are
    more of them than cores, those of all threads sleep between operations instead of waiting busily, and each
    of the hundreds of operations of a tick has to wake them up. So the decoding thread should be the only one
    that lives and computes.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@dataclass(frozen=True, slots=True)
class _Listener:
    """Where the events of a row go.

    Args:
        loop: the event loop that waits for them.
        queue: of the request.
        index: the row's position in the request.
    """

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Event]
    index: int


@final
class TorchDecoder:
    """Owns the running batch. Other threads only leave requests here and get events back.

    Implements `envkit.serving.decoding.decoder.Decoder`.

    Args:
        batch: decodes; used by this thread only.
    """

    def __init__(self, batch: RunningBatch) -> None:
        self._batch = batch
        self._wake = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        #: Work of `ask`. One is done between two ticks, so that running rows do not wait for all of them.
        self._asked: deque[Callable[[], None]] = deque()
        self._stopping = False
        #: The error that ended the thread.
        self.error: Exception | None = None
        #: Rows that run, and tokens of the KV cache; as of the last tick.
        self.running = self.cache_tokens = 0
        #: Rows that wait as of the last tick, and those that came since.
        self._waiting = self._arriving = 0
        #: Where the events of each row go.
        self._rows: dict[int, _Listener] = {}
        self._thread = threading.Thread(target=self._run, name="envkit-decoder", daemon=True)

    def start(self) -> None:
        """Start decoding."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the current tick. Rows that still run fail."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Rows that wait to be admitted."""
        return self._waiting + self._arriving

    def uses(self, adapter: str) -> bool:
        """True if a row waits or runs with an adapter. Only the decoding thread may call it."""
        return self._batch.uses(adapter)

    def do(self, action: Callable[[], None], rows: int = 0) -> None:
        """Run an action in the decoding thread, between two ticks.

        Args:
            action: whatever it raises ends the thread.
            rows: that it submits; they count as waiting from now on.

        Raises:
            DecoderStopped: the thread has ended.
        """
        with self._wake:
            self._require_running()
            self._inbox.append(action)
            self._arriving += rows
            self._wake.notify()

    async def ask(self, work: Callable[[], _T]) -> _T:
        """Return the result of some work in the decoding thread, between two ticks.

        Raises:
            DecoderStopped: the thread has ended.
            Exception: what the work raises; the thread goes on.
        """
        future = Future[_T]()

        def run() -> None:
            try:
                if not future.set_running_or_notify_cancel():  # the client has left
                    return
                self._require_running()
                result = work()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._wake:
            self._require_running()
            self._asked.append(run)
            self._wake.notify()
        return await asyncio.wrap_future(future)

    def _require_running(self) -> None:
        """Raise if the thread has ended, or is about to.

        Raises:
            DecoderStopped: see above.
        """
        if self._stopping or self.error is not None:
            raise DecoderStopped("the server is shutting down, or its decoder has failed")

    async def stream(
        self, requests: Sequence[RowRequest], prepare: Callable[[], None]
    ) -> AsyncGenerator[Event]:
        """Implements `Decoder.stream`. ``prepare`` is called in the decoding thread."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event]()
        numbers: list[int] = []  # used by the decoding thread only
        open_rows = {*range(len(requests))}

        def submit() -> None:
            for index, request in enumerate(requests):
                listener = _Listener(loop, queue, index)
                try:
                    prepare()
                    number = self._batch.submit(request)
                except Exception as error:  # nothing was submitted, so that the other rows can go on
                    fault = ContractError(f"a row could not be submitted: {error!r}")
                    known = error if isinstance(error, EnvkitError) else fault
                    _send([(listener, Failed(-1, known))])
                    continue
                numbers.append(number)
                self._rows[number] = listener
            with self._wake:
                self._arriving -= len(requests)
                self._count()

        def cancel() -> None:
            for number in numbers:
                if self._rows.pop(number, None) is not None:
                    self._batch.cancel(number)

        self.do(submit, len(requests))
        try:
            while open_rows:
                index, event = await queue.get()
                if isinstance(event, Failed) or event.stop:
                    open_rows.discard(index)
                yield index, event
        finally:
            if open_rows:
                with suppress(DecoderStopped):  # then its rows have ended, too
                    self.do(cancel)

    def _run(self) -> None:
        try:
            while self._take():
                sent: list[tuple[_Listener, Drawn | Failed]] = []
                for event in self._batch.tick():
                    is_over = isinstance(event, Failed) or event.stop
                    listener = self._rows.pop(event.row, None) if is_over else self._rows.get(event.row)
                    if listener is not None:
                        sent.append((listener, event))
                _send(sent)
                self._count()
            raise DecoderStopped("the server is shutting down")
        except Exception as error:  # reported by every open request, and by /health
            with self._wake:
                self.error = error
                inbox, self._inbox = [*self._inbox, *self._asked], []
                self._asked.clear()
            for action in inbox:
                action()  # they get the error too
            failed = error if isinstance(error, EnvkitError) else DecoderStopped("the decoder has failed")
            _send([(listener, Failed(number, failed)) for number, listener in self._rows.items()])
            self._rows.clear()
            if not self._stopping:
                raise

    def _take(self) -> bool:
        """Wait for something to do, and do what was left here; False if the thread is to end."""
        with self._wake:
            while not (
                self._inbox or self._asked or self._stopping or self._batch.waiting or self._batch.running
            ):
                self._wake.wait()
            inbox, self._inbox = self._inbox, []
            if self._asked and not self._stopping:
                inbox.append(self._asked.popleft())
            if self._stopping:
                self._inbox = inbox
                return False
        for action in inbox:
            action()
        return True

    def _count(self) -> None:
        self._waiting, self.running = self._batch.waiting, self._batch.running
        self.cache_tokens = self._batch.cache_tokens


def _send(events: Sequence[tuple[_Listener, Drawn | Failed]]) -> None:
    """Hand events over to the threads of their loops; a loop that is closed wants none."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Listener, Drawn | Failed]]] = {}
    for listener, event in events:
        by_loop.setdefault(listener.loop, []).append((listener, event))
    for loop, mine in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_put, mine)  # once a tick: each call wakes up the other thread


def _put(events: Sequence[tuple[_Listener, Drawn | Failed]]) -> None:
    for listener, event in events:
        listener.queue.put_nowait((listener.index, event))
