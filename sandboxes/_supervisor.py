"""Supervises one process tree: feeds and reads its pipes, and ends it when it exceeds a limit."""

from __future__ import annotations

import math
import os
import selectors
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Final, final

from envkit.errors import ContractError, SandboxError
from envkit.sandbox import ExecResult, Limits, PeerGone, StopReason
from envkit.sandboxes._linux.child import Pipes

_CHUNK_BYTES = 65536
#: Shortest and longest time between two checks of the tree's usage.
_CHECK_S: Final = (0.01, 0.25)
_CPUS = os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources that a running tree has used so far.

    Args:
        cpu_s: CPU seconds.
        out_of_memory: the kernel has killed one of its processes because memory ran out.
        processes: number of living processes; 0 if the kernel limits them.
    """

    cpu_s: float
    out_of_memory: bool = False
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a tree.

    Args:
        code: exit status, or minus the signal that ended the command.
        usage: its total usage.
        peak_memory_bytes: 0 if unknown.
    """

    code: int
    usage: Usage
    peak_memory_bytes: int = 0


class Tree(ABC):
    """A running command and its descendants. Owned by one `Supervisor`, which releases it.

    Args:
        pipes: the host's ends of the command's stdin, stdout and stderr, unbuffered.
        pidfd: a descriptor that becomes readable when the command ends.
    """

    def __init__(self, pipes: Pipes, pidfd: int) -> None:
        self.pipes, self.pidfd = pipes, pidfd

    def release(self) -> None:
        """Close the descriptor and the pipes. Called once, after the end."""
        os.close(self.pidfd)
        for pipe in self.pipes:
            pipe.close()  # unbuffered, so closing writes nothing and cannot fail

    @abstractmethod
    def usage(self) -> Usage:
        """Resources used so far."""

    @abstractmethod
    def end(self) -> Ending:
        """Kill all its processes and return once they are dead. Called once.

        Raises:
            SandboxError: the sandbox's machinery died, so the command's result is unknown.
        """


@final
class Supervisor:
    """Runs a tree to its end (`run`), or exchanges lines with it (as an `envkit.sandbox.Peer`).

    Args:
        tree: just started; the supervisor ends it.
        limits: of the command; their time counts from now, because starting may take long on a busy machine.
        began: when the command may have begun at the earliest, by `time.monotonic`. Measured time counts
            from then.
    """

    def __init__(self, tree: Tree, limits: Limits, began: float) -> None:
        self._tree, self._limits, self._began = tree, limits, began
        now = time.monotonic()
        self._deadline = now + limits.wall_s
        self._check_at = min(now + _CHECK_S[0], self._deadline)
        self._stop: StopReason | None = None
        self.closed = self._exited = self._truncated = False
        self._result: ExecResult | None = None
        self._unsent = memoryview(b"")
        self._out, self._err = bytearray(), bytearray()
        self._stdin, self._stdout, self._stderr = tree.pipes
        self._pidfd = tree.pidfd
        self._selector = selectors.DefaultSelector()
        for pipe in tree.pipes:
            os.set_blocking(pipe.fileno(), False)
        for source, action in (
            (self._pidfd, self._notice_exit),
            (self._stdout, lambda: self._listen(self._stdout, self._out)),
            (self._stderr, lambda: self._listen(self._stderr, self._err)),
        ):
            self._selector.register(source, selectors.EVENT_READ, action)

    def run(self, stdin: bytes) -> ExecResult:
        """Feed ``stdin`` and wait for the end."""
        self._send(stdin)
        self._pump(lambda: self._exited or not self._unsent)
        self._stdin.close()
        self._pump(lambda: self._exited)
        return self.close()

    def ask(self, line: bytes, timeout_s: float) -> bytes:
        """See `envkit.sandbox.Peer.ask`."""
        if b"\n" in line:
            raise ContractError("a peer is asked one line at a time; found a newline in the line")
        if self.closed:
            raise PeerGone("the program has ended")
        self._pump(lambda: True)
        if self._out:
            self.close()
            raise PeerGone("the program wrote without being asked", tampered=True)
        self._send(line + b"\n")
        self._pump(lambda: self._exited or b"\n" in self._out, time.monotonic() + timeout_s)
        self._drain()
        answer, newline, rest = bytes(self._out).partition(b"\n")
        if self._stop is None and newline and not rest and not self._unsent:
            self._out.clear()
            return answer
        silent = self._stop is None and not self._exited and not newline
        unread = self._stop is None and len(self._unsent) > 0
        result = self.close()
        if rest:
            raise PeerGone("the program wrote more than one line as its answer", tampered=True)
        if newline and unread:
            raise PeerGone("the program answered before it had read the request", tampered=True)
        if silent:
            raise PeerGone(f"the program did not answer within {timeout_s:g} s", timed_out=True)
        ended = f"the program ended ({result.stop}{'' if result.exit is None else f', status {result.exit}'})"
        raise PeerGone(
            f"{ended} {result.stderr[-500:].decode(errors='replace')}".strip(),
            timed_out=result.stop is StopReason.WALL,
        )

    def close(self) -> ExecResult:
        """Kill the whole tree if it still runs, and return its result. Idempotent.

        Raises:
            SandboxError: the sandbox's machinery died.
        """
        if self._result is not None:
            return self._result
        if self.closed:
            raise SandboxError("the sandbox's machinery died earlier; its result is lost")
        self.closed = True
        try:
            ending = self._tree.end()
        except SandboxError as error:
            self._drain()
            raise SandboxError(f"{error}: {self._err[-500:].decode(errors='replace').strip()}") from error
        else:
            self._drain()
        finally:
            self._selector.close()
            self._tree.release()
        stop = self._judge(ending)
        self._result = ExecResult(
            stop=stop,
            exit=ending.code if stop is StopReason.EXITED else None,
            stdout=bytes(self._out),
            stderr=bytes(self._err),
            truncated=self._truncated,
            cpu_s=ending.usage.cpu_s,
            wall_s=time.monotonic() - self._began,
            peak_memory_bytes=ending.peak_memory_bytes,
        )
        return self._result

    def _judge(self, ending: Ending) -> StopReason:
        # From the final counters, so that the verdict does not depend on the time of the last check.
        if ending.usage.out_of_memory:
            return StopReason.MEMORY
        if self._stop is not None:
            return self._stop
        if ending.usage.cpu_s > self._limits.cpu_s or ending.code == -signal.SIGXCPU:
            return StopReason.CPU
        return StopReason.EXITED if ending.code >= 0 else StopReason.SIGNALED

    def _pump(self, done: Callable[[], bool], until: float = math.inf) -> None:
        """Move bytes until ``done``, a limit is exceeded, or the monotonic clock reaches ``until``."""
        while True:
            wait_s = 0.0 if done() else max(0.0, min(until - time.monotonic(), self._check_limits()))
            for key, _ in self._selector.select(wait_s):
                key.data()
            if done() or self._stop is not None or time.monotonic() >= until:
                return

    def _check_limits(self) -> float:
        """Check the limits if a check is due; returns the seconds until the next one."""
        now = time.monotonic()
        if now < self._check_at:
            return self._check_at - now
        usage, left_s = self._tree.usage(), self._deadline - now
        cpu_left_s = self._limits.cpu_s - usage.cpu_s
        if usage.out_of_memory:
            self._stop = StopReason.MEMORY
        elif cpu_left_s <= 0:
            self._stop = StopReason.CPU
        elif left_s <= 0:
            self._stop = StopReason.WALL
        elif usage.processes > self._limits.processes:
            self._stop = StopReason.SIGNALED
        else:
            shortest, longest = _CHECK_S
            next_s = min(left_s, max(shortest, min(longest, cpu_left_s / _CPUS)))
            self._check_at = now + next_s
            return next_s
        return 0.0

    def _notice_exit(self) -> None:
        self._exited = True
        self._selector.unregister(self._pidfd)

    def _send(self, data: bytes) -> None:
        self._unsent = memoryview(data)
        self._write()  # often all of it fits into the pipe
        if self._unsent:
            self._selector.register(self._stdin, selectors.EVENT_WRITE, self._feed)

    def _feed(self) -> None:
        self._write()
        if not self._unsent:
            self._selector.unregister(self._stdin)

    def _write(self) -> None:
        try:
            sent = os.write(self._stdin.fileno(), self._unsent[:_CHUNK_BYTES])
        except BlockingIOError:
            return
        except OSError:  # the program has closed its stdin, which it may do
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]

    def _listen(self, pipe: IO[bytes], kept: bytearray) -> None:
        if self._receive(pipe, kept) == b"":
            self._selector.unregister(pipe)

    def _drain(self) -> None:
        """Read the bytes left in the pipes. Never waits for EOF: an escaped process can hold them open."""
        for pipe, kept in ((self._stdout, self._out), (self._stderr, self._err)):
            while not self._truncated and self._receive(pipe, kept):
                pass

    def _receive(self, pipe: IO[bytes], kept: bytearray) -> bytes | None:
        """Read once into ``kept``. Returns ``b""`` at the end of the stream, ``None`` without data."""
        room = self._limits.output_bytes - len(kept)
        try:
            data = os.read(pipe.fileno(), min(_CHUNK_BYTES, room + 1))
        except BlockingIOError:
            return None
        kept += data[:room]
        if len(data) > room:
            self._truncated, self._stop = True, self._stop or StopReason.OUTPUT
        return data
