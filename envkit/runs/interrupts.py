"""Stopping a run by signal: the first asks it to stop at the next safe point, the second ends it at once."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final, final

#: Ctrl-C, `kill`, and a terminal that was closed: all three stop a run in the same way.
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A stop signal ended the work at once.

    Args:
        signal: the signal that came.
    """

    def __init__(self, signal: signal.Signals) -> None:
        super().__init__(signal.name)
        self.signal = signal


def raise_interrupted(number: int, frame: FrameType | None) -> None:
    """Signal handler that ends the work at once."""
    raise Interrupted(signal.Signals(number))


@final
class StopRequest:
    """Remembers the first stop signal. Work polls `should_stop`; see `envkit.runtime.stop`."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def should_stop(self) -> bool:
        """True once a stop signal came."""
        return self.signal is not None


@contextmanager
def stopping_on_signal(say: Callable[[str], None], message: str) -> Generator[StopRequest]:
    """Turn the first stop signal into a `StopRequest`; a second one raises `Interrupted`.

    Python runs signal handlers between two steps of the main thread, so a long matrix product would delay
    the answer. Therefore a thread prints it: the interpreter writes each signal's number to a socket at once.

    Signal handlers belong to the main thread: in another thread nothing is installed.

    Args:
        say: prints ``message`` as soon as the first signal comes. Called in another thread.
        message: what will be kept, and how to go on.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    signals, wakeup = socket.socketpair()
    wakeup.setblocking(False)  # `set_wakeup_fd` demands it
    received: list[int] = []
    handled: list[int] = []

    def answer() -> None:
        while number := signals.recv(1):
            if number[0] not in STOP_SIGNALS:
                continue
            received.append(number[0])
            if len(received) == 1:
                request.signal = signal.Signals(number[0])
                with contextlib.suppress(OSError):  # the terminal is gone
                    say(message)

    def on_signal(number: int, frame: FrameType | None) -> None:
        handled.append(number)
        request.signal = request.signal or signal.Signals(number)
        # Two signals during one step of the main thread call its handler once.
        if len(handled) > 1 or len(received) > 1:
            raise Interrupted(signal.Signals(number))

    thread = threading.Thread(target=answer, name="envkit-stop-signals", daemon=True)
    with signals, wakeup:
        before = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        thread.start()
        try:
            with handling_signals(on_signal):
                yield request
        finally:
            signal.set_wakeup_fd(before)
            wakeup.close()
            thread.join()


@contextmanager
def handling_signals(handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Install a handler for all stop signals for the length of the block; main thread only.

    A signal that the parent process has switched off stays off, as SIGHUP under ``nohup``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
