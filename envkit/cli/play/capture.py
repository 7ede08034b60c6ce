"""A sandbox backend that keeps an episode's files as they were just before its sandbox was closed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from typing import Any, Final, final

from envkit.errors import SandboxError, UsageError
from envkit.sandbox import Contents, Lock, Sandbox, SandboxBackend

_MAX_FILE_BYTES: Final = 2**20


@final
class CapturingBackend(SandboxBackend):
    """Wraps another backend; reads files of the first captured sandbox before it closes.

    Args:
        inner: the backend that makes the sandboxes.
    """

    def __init__(self, inner: SandboxBackend) -> None:
        self._inner = inner
        self.name, self.isolated = inner.name, inner.isolated
        self.contents, self.warm, self.quota = inner.contents, inner.warm, inner.quota
        self._is_first = True
        #: Set it once the tasks are made: the next sandbox is then the episode's.
        self.capturing = False
        #: Paths to read.
        self.paths: Collection[str] = ()
        #: Path -> its content, empty if the file was deleted. Unreadable files are missing.
        self.files: dict[str, bytes] = {}

    def available(self) -> str | None:
        return self._inner.available()

    @property
    def lock(self) -> Lock:
        return self._inner.lock

    def with_contents(self, contents: Contents, warm: Sequence[str] = ()) -> SandboxBackend:
        return self._inner.with_contents(contents, warm)  # for graders; the episode's own are held already

    def create(self) -> Sandbox:
        sandbox: Any = self._inner.create()
        if self.capturing and self._is_first:
            self._is_first, close = False, sandbox.close

            def read_and_close() -> None:
                try:
                    self._read_files(sandbox)
                finally:
                    close()

            sandbox.close = read_and_close
        return sandbox

    def _read_files(self, sandbox: Sandbox) -> None:
        for path in self.paths:
            # Unreadable if the agent replaced it by a link or a huge file, or if the sandbox broke.
            with contextlib.suppress(UsageError, SandboxError):
                try:
                    self.files[path] = sandbox.read(path, _MAX_FILE_BYTES)
                except FileNotFoundError:
                    self.files[path] = b""
