"""Files of an episode's sandbox as they were when it ended, by which time the sandbox is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from typing import Any, Final, final

from envkit.errors import SandboxError, UsageError
from envkit.sandbox import Sandbox, SandboxBackend

_MOST_BYTES: Final = 2**20


@final
class CapturingBackend(SandboxBackend):
    """Sandboxes of another backend; files of the first are read just before it is closed.

    Args:
        inner: makes them.
    """

    def __init__(self, inner: SandboxBackend) -> None:
        self._inner = inner
        self.name, self.isolated = inner.name, inner.isolated
        self.packages, self.quota = inner.packages, inner.quota
        self._is_first = True
        #: Set once the tasks are made: the next sandbox is the episode's.
        self.capturing = False
        #: Paths to look at.
        self.paths: Collection[str] = ()
        #: Path -> the text that was found there, empty where it is gone; missing where that cannot be told.
        self.files: dict[str, str] = {}

    def available(self) -> str | None:
        return self._inner.available()

    def with_packages(self, packages: Sequence[str], warm: Sequence[str] = ()) -> SandboxBackend:
        return self._inner.with_packages(packages, warm)  # for graders; the episode's own sandbox has none

    def create(self) -> Sandbox:
        sandbox: Any = self._inner.create()
        if self.capturing and self._is_first:
            self._is_first, close = False, sandbox.close

            def closing() -> None:
                try:
                    self._look(sandbox)
                finally:
                    close()

            sandbox.close = closing
        return sandbox

    def _look(self, sandbox: Sandbox) -> None:
        for path in self.paths:
            # It cannot where an agent has linked or filled it, or the sandbox is broken.
            with contextlib.suppress(UsageError, UnicodeDecodeError, SandboxError):
                try:
                    self.files[path] = sandbox.read(path, _MOST_BYTES).decode()
                except FileNotFoundError:
                    self.files[path] = ""
