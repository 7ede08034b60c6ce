"""A sandbox backend for audits: its sandboxes can be scanned, broken on purpose, and closed from outside."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any, NoReturn, final

from envkit.audit.scanner import SandboxScanner
from envkit.errors import SandboxError
from envkit.sandbox import Contents, Lock, Sandbox, SandboxBackend


@final
class InstrumentedBackend(SandboxBackend):
    """Wraps another backend and keeps a reference to each sandbox that it makes.

    Args:
        inner: makes the sandboxes.
        breaks: True to make every attempt to run a program fail.
        scans: True to make `scanner` able to search the first sandbox, which is the episode's. Needs an
            isolating backend.
    """

    def __init__(self, inner: SandboxBackend, *, breaks: bool = False, scans: bool = False) -> None:
        self._inner, self._breaks, self._scans = inner, breaks, scans
        self.name, self.isolated = inner.name, inner.isolated
        self.contents, self.quota = inner.contents, inner.quota
        self._made: list[Sandbox] = []
        self._broken: list[str] = []
        #: Scanner of the first sandbox; ``None`` without ``scans``, isolation or a sandbox.
        self.scanner: SandboxScanner | None = None

    @property
    def broken_calls(self) -> int:
        """Number of attempts to run a program that were made to fail."""
        return len(self._broken)

    def available(self) -> str | None:
        return self._inner.available()

    @property
    def lock(self) -> Lock:
        return self._inner.lock

    def with_contents(self, contents: Contents, warm: Sequence[str] = ()) -> InstrumentedBackend:
        """See `envkit.sandbox.SandboxBackend.with_contents`. Either backend closes the sandboxes of both."""
        other = copy.copy(self)
        other._inner = self._inner.with_contents(contents, warm)
        other.contents = contents
        return other

    def create(self) -> Sandbox:
        sandbox: Any = self._inner.create()
        self._made.append(sandbox)
        if self._breaks:
            sandbox.run = sandbox.open = self._fail
        if self._scans and self.isolated and self.scanner is None:
            self.scanner = SandboxScanner(sandbox)
            sandbox.open, sandbox.run = self.scanner.open, self.scanner.run
        return sandbox

    def close(self) -> None:
        """Close all sandboxes, also those in use."""
        for sandbox in self._made:
            with contextlib.suppress(Exception):
                sandbox.close()

    def _fail(self, *_: object, **__: object) -> NoReturn:
        self._broken.append(self.name)
        raise SandboxError("broken on purpose")
