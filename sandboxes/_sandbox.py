"""What every backend shares whose workspace the host reaches as a folder."""

from __future__ import annotations

import contextlib
import functools
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from envkit.errors import SandboxError, UsageError
from envkit.sandbox import ExecResult, Limits, Peer
from envkit.sandboxes import _cgroup
from envkit.sandboxes._supervise import Supervisor, Tree
from envkit.sandboxes._temporary import reap
from envkit.sandboxes._workspace import File, Workspace

#: What no word of a command can hold.
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")


class FolderSandbox(ABC):
    """A `envkit.sandbox.Sandbox` whose subclass says how a command starts, and where the workspace lies.

    Args:
        workspace: an empty one; the sandbox closes it.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._running: list[Supervisor] = []
        self._snapshots: dict[str, Mapping[str, File]] = {}

    @property
    @abstractmethod
    def python(self) -> str:
        """Path of the Python interpreter as seen from inside."""

    @abstractmethod
    def _start(self, argv: Sequence[str], limits: Limits) -> Tree:
        """Start a command in the workspace under ``limits``."""

    @abstractmethod
    def _vacate(self) -> None:
        """Remove the place where the workspace lay. Idempotent."""

    def write(self, path: str, data: bytes) -> None:
        """See `envkit.sandbox.Sandbox.write`."""
        self._workspace.write(path, data)

    def read(self, path: str, limit_bytes: int) -> bytes:
        """See `envkit.sandbox.Sandbox.read`."""
        return self._workspace.read(path, limit_bytes)

    def export(self, globs: Sequence[str], limit_bytes: int) -> Mapping[str, bytes]:
        """See `envkit.sandbox.Sandbox.export`; also refuses trees beyond 20,000 entries or 64 levels."""
        return self._workspace.export(globs, limit_bytes)

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", limits: Limits = Limits()) -> ExecResult:
        """See `envkit.sandbox.Sandbox.run`."""
        return self._supervise(argv, limits).run(stdin)

    def open(self, argv: Sequence[str], *, limits: Limits = Limits()) -> Peer:
        """See `envkit.sandbox.Sandbox.open`."""
        return self._supervise(argv, limits)

    def snapshot(self) -> str:
        """See `envkit.sandbox.Sandbox.snapshot`; regular files with their modes are kept, in memory."""
        name = f"snapshot-{len(self._snapshots)}"
        self._snapshots[name] = self._workspace.keep()
        return name

    def reset(self, snapshot: str | None = None) -> None:
        """See `envkit.sandbox.Sandbox.reset`."""
        if snapshot is not None and snapshot not in self._snapshots:
            known = ", ".join(self._snapshots) or "none"
            raise UsageError(f"no snapshot {snapshot!r} in this sandbox; it has: {known}")
        self._kill()
        self._workspace.restore({} if snapshot is None else self._snapshots[snapshot])

    def close(self) -> None:
        """See `envkit.sandbox.Sandbox.close`."""
        self._kill()
        self._workspace.close()
        self._vacate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _supervise(self, argv: Sequence[str], limits: Limits) -> Supervisor:
        for word in argv:
            # Words of an agent's, perhaps: what no system can start is not the machinery's failure.
            if _IMPOSSIBLE.search(word):
                raise UsageError(f"{word[:40]!r} holds a NUL or half a surrogate pair; no command takes that")
        self._workspace.admit()
        supervisor = Supervisor(self._start(argv, limits), limits)
        self._running = [each for each in self._running if not each.closed]
        self._running.append(supervisor)
        return supervisor

    def _kill(self) -> None:
        for supervisor in self._running:
            with contextlib.suppress(SandboxError):  # it died on its own, which is what we want
                supervisor.close()
        self._running.clear()


def temporary() -> Path:
    """The folder for temporary files, without what dead processes of ours have left in it."""
    parent = Path(tempfile.gettempdir())
    _reap_once(parent)
    return parent


def reap_leftovers() -> list[str]:
    """Remove temporary folders whose owner is dead, and the control groups named after them."""
    names = reap(Path(tempfile.gettempdir()))
    for name in names:
        _cgroup.remove_leftovers(name)
    return names


@functools.cache
def _reap_once(parent: Path) -> None:
    reap_leftovers()
