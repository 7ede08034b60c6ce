"""A sandbox backend for audits: its sandboxes can be scanned, broken on purpose, and closed from outside."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any, NoReturn, final

from envkit.audit.scanner import SandboxScanner
from envkit.errors import SandboxError
from envkit.sandbox import Sandbox, SandboxBackend


@final
class InstrumentedBackend(SandboxBackend):
    """Makes the sandboxes of another backend, and keeps hold of them.

    Args:
        inner: makes the sandboxes.
        breaks: every attempt to run a program in them fails.
        scans: `scanner` can search the first one, which is the episode's, if the backend isolates.
    """

    def __init__(self, inner: SandboxBackend, *, breaks: bool = False, scans: bool = False) -> None:
        self._inner, self._breaks, self._scans = inner, breaks, scans
        self.name, self.isolated = inner.name, inner.isolated
        self.packages, self.quota = inner.packages, inner.quota
        self._made: list[Sandbox] = []
        self._broken: list[str] = []
        #: Of the first sandbox.
        self.scanner: SandboxScanner | None = None

    @property
    def broken_calls(self) -> int:
        """Number of attempts to run a program that were made to fail."""
        return len(self._broken)

    def available(self) -> str | None:
        return self._inner.available()

    def with_packages(self, packages: Sequence[str], warm: Sequence[str] = ()) -> InstrumentedBackend:
        """See `envkit.sandbox.SandboxBackend.with_packages`. Either backend closes the sandboxes of both."""
        other = copy.copy(self)
        other._inner = self._inner.with_packages(packages, warm)
        other.packages = other._inner.packages
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
