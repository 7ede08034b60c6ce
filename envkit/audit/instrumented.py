"""Sandboxes of another backend that whoever audits can look into, break, and close from outside."""

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
    """Sandboxes of another backend, which can all be closed at once.

    Args:
        inner: makes them.
        breaks: nothing can be run in them.
        looks: the first one, which is the episode's, can be looked into, if it isolates.
    """

    def __init__(self, inner: SandboxBackend, *, breaks: bool = False, looks: bool = False) -> None:
        self._inner, self._breaks, self._looks = inner, breaks, looks
        self.name, self.isolated = inner.name, inner.isolated
        self.packages, self.quota = inner.packages, inner.quota
        self._made: list[Sandbox] = []
        self._broken: list[str] = []
        #: Of the first one.
        self.lookout: SandboxScanner | None = None

    @property
    def broke(self) -> int:
        """How often a sandbox was asked to run something that breaks."""
        return len(self._broken)

    def available(self) -> str | None:
        return self._inner.available()

    def with_packages(self, packages: Sequence[str], warm: Sequence[str] = ()) -> InstrumentedBackend:
        """See `envkit.sandbox.SandboxBackend.with_packages`; both close the sandboxes of both."""
        other = copy.copy(self)
        other._inner = self._inner.with_packages(packages, warm)
        other.packages = other._inner.packages
        return other

    def create(self) -> Sandbox:
        sandbox: Any = self._inner.create()
        self._made.append(sandbox)
        if self._breaks:
            sandbox.run = sandbox.open = self._break
        if self._looks and self.isolated and self.lookout is None:
            self.lookout = SandboxScanner(sandbox)
            sandbox.open, sandbox.run = self.lookout.open, self.lookout.run
        return sandbox

    def close(self) -> None:
        """Close all, whoever is in them."""
        for sandbox in self._made:
            with contextlib.suppress(Exception):
                sandbox.close()

    def _break(self, *_: object, **__: object) -> NoReturn:
        self._broken.append(self.name)
        raise SandboxError("broken on purpose")
