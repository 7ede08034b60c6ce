"""A sandbox backend for audits: its sandboxes can be scanned, broken on purpose, and closed from outside."""

from __future__ import annotations

import contextlib
import copy
import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, final

from envkit.audit.leaks.scanner import SandboxScanner
from envkit.errors import SandboxError, TooLargeError
from envkit.sandbox import Contents, ExecResult, Lock, Peer, PeerGone, Sandbox, SandboxBackend, StopReason

#: Calls of a sandbox that start programs.
_PROGRAM_CALLS: Final = ("run", "open")
#: Calls of a sandbox that are counted, and can be made to fail.
_CALLS: Final = (*_PROGRAM_CALLS, "read", "write", "export", "snapshot", "fork", "reset")


class FaultKind(enum.StrEnum):
    """A way in which sandboxes break."""

    #: Each call raises `SandboxError`.
    FAILS = "the sandbox fails"
    #: Programs are killed, and nothing can be written any more.
    DIES = "its programs die"


@dataclass(frozen=True, slots=True)
class SandboxFault:
    """Breaks the sandboxes of a backend, all at once and for good.

    Args:
        kind: what happens.
        first: number of the first call that is affected, counted over all sandboxes from 0.
        only_programs: True if only calls that start programs are affected.
    """

    kind: FaultKind
    first: int = 0
    only_programs: bool = False


@final
class InstrumentedBackend(SandboxBackend):
    """Wraps another backend and keeps a reference to each sandbox that it makes.

    Args:
        inner: makes the sandboxes.
        fault: breaks them; ``None`` only counts the calls.
        scans: True to make `scanner` able to search the first sandbox, which is the episode's. Needs an
            isolating backend.
    """

    def __init__(
        self, inner: SandboxBackend, *, fault: SandboxFault | None = None, scans: bool = False
    ) -> None:
        self._inner, self._calls, self._scans = inner, _Calls(fault), scans
        self.name, self.isolated = inner.name, inner.isolated
        self.contents, self.warm, self.quota = inner.contents, inner.warm, inner.quota
        #: Closes each sandbox that is open.
        self._open: dict[int, Callable[[], None]] = {}
        #: Scanner of the first sandbox; ``None`` without ``scans``, isolation or a sandbox.
        self.scanner: SandboxScanner | None = None

    @property
    def calls(self) -> int:
        """Number of calls so far, those that were made to fail included."""
        return self._calls.count

    @property
    def broken_calls(self) -> int:
        """Number of calls that were made to fail."""
        return self._calls.broken

    def available(self) -> str | None:
        return self._inner.available()

    @property
    def lock(self) -> Lock:
        return self._inner.lock

    def with_contents(self, contents: Contents, warm: Sequence[str] = ()) -> InstrumentedBackend:
        """See `envkit.sandbox.SandboxBackend.with_contents`. Either backend closes the sandboxes of both."""
        other = copy.copy(self)
        other._inner = self._inner.with_contents(contents, warm)
        other.contents, other.warm = contents, warm
        return other

    def create(self) -> Sandbox:
        return self._instrument(self._inner.create())

    def close(self) -> None:
        """Close all sandboxes, also those in use."""
        while self._open:
            with contextlib.suppress(Exception):
                self._open.popitem()[1]()

    def _instrument(self, sandbox: Any) -> Sandbox:
        self._open[id(sandbox)] = sandbox.close
        sandbox.close = functools.partial(self._close, id(sandbox), sandbox.close)
        if self._scans and self.isolated and self.scanner is None:
            self.scanner = SandboxScanner(sandbox)
            sandbox.open, sandbox.run = self.scanner.open, self.scanner.run
        for name in _CALLS:
            setattr(sandbox, name, self._counted(name, getattr(sandbox, name)))
        return sandbox

    def _close(self, number: int, close: Callable[[], None]) -> None:
        self._open.pop(number, None)
        close()

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            fault = self._calls.next(name)
            if fault is FaultKind.DIES and name in _WHEN_DEAD:
                return _WHEN_DEAD[name]()
            if fault is FaultKind.FAILS:
                raise SandboxError("broken on purpose")
            found = call(*args, **options)
            if name == "open":
                return _CountedPeer(found, self._calls)
            return self._instrument(found) if name == "fork" else found

        return counted


class _Calls:
    """Counts calls, and says which ones a fault affects."""

    def __init__(self, fault: SandboxFault | None) -> None:
        self._fault = fault
        self.count = self.broken = 0

    def next(self, name: str) -> FaultKind | None:
        """Count a call; returns the fault that it meets, if any."""
        fault = self._fault
        if fault is not None and fault.only_programs and name not in _PROGRAM_CALLS:
            return None
        self.count += 1
        if fault is None or self.count <= fault.first:
            return None
        self.broken += 1
        return fault.kind


@final
class _CountedPeer(Peer):
    """A peer whose requests are counted, and may be made to fail."""

    def __init__(self, peer: Peer, calls: _Calls) -> None:
        self._peer, self._calls = peer, calls

    def ask(self, line: bytes, timeout_s: float) -> bytes:
        match self._calls.next("ask"):
            case FaultKind.FAILS:
                raise SandboxError("broken on purpose")
            case FaultKind.DIES:
                raise PeerGone("killed on purpose")
            case None:
                return self._peer.ask(line, timeout_s)

    def close(self) -> ExecResult:
        return self._peer.close()


@final
class _DeadPeer(Peer):
    """A program that was killed before it answered anything."""

    def ask(self, line: bytes, timeout_s: float) -> bytes:
        raise PeerGone("killed on purpose")

    def close(self) -> ExecResult:
        return _killed()


def _killed() -> ExecResult:
    return ExecResult(StopReason.SIGNALED, None, b"", b"", False, 0.0, 0.0)


def _full() -> NoReturn:
    raise TooLargeError("the workspace was filled on purpose")


#: What calls do whose programs are killed and whose workspace is full. The others work.
_WHEN_DEAD: Final[Mapping[str, Callable[[], object]]] = {"run": _killed, "open": _DeadPeer, "write": _full}
