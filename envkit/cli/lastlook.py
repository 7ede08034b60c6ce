"""Files of an episode's sandbox as they were when it ended, by which time the sandbox is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any, Final, final

from envkit.errors import SandboxError, TooLargeError
from envkit.sandbox import Sandbox, SandboxBackend

_MOST_BYTES: Final = 2**20


@final
class LastLook(SandboxBackend):
    """Sandboxes of another backend; files of the first are read just before it is closed.

    Args:
        inner: makes them.
    """

    def __init__(self, inner: SandboxBackend) -> None:
        self._inner = inner
        self.name, self.isolated = inner.name, inner.isolated
        self.packages, self.space = inner.packages, inner.space
        self._is_first = True
        #: Paths to look at.
        self.paths: Collection[str] = ()
        #: Path -> the text that was found there; one that is missing is no text any more.
        self.found: dict[str, str] = {}

    def available(self) -> str | None:
        return self._inner.available()

    def create(self) -> Sandbox:
        sandbox: Any = self._inner.create()
        if self._is_first:
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
            # Nothing to show where an agent has removed or filled it, or the sandbox is broken.
            with contextlib.suppress(FileNotFoundError, UnicodeDecodeError, TooLargeError, SandboxError):
                self.found[path] = sandbox.read(path, _MOST_BYTES).decode()
