"""The base of all backends' sandboxes: files, snapshots and commands in one workspace."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from envkit.errors import ContractError, SandboxError, SandboxUnavailable, UsageError
from envkit.runtime.lease import reap
from envkit.sandbox import ExecResult, Limits, Peer, Sandbox
from envkit.sandboxes._linux import cgroup
from envkit.sandboxes._supervisor import Supervisor, Tree
from envkit.sandboxes._workspace.files import File, Workspace

if TYPE_CHECKING:
    from envkit.sandboxes._workspace.mounts import SnapshotLayer

#: Characters that no argument of a command can hold.
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of a workspace at one point in time.

    Args:
        files: to copy into a workspace, in path order.
        layer: a read-only file system to mount beneath a workspace, if workspaces are mounts.
    """

    files: Mapping[str, File]
    layer: SnapshotLayer | None = None

    def share(self) -> Snapshot:
        """The same snapshot, for another sandbox, which closes it as well."""
        if self.layer is not None:
            self.layer.share()
        return self

    def close(self) -> None:
        """Release it. Each sandbox that holds it calls this once."""
        if self.layer is not None:
            self.layer.close()


class FolderSandbox(ABC):
    """An `envkit.sandbox.Sandbox`. Subclasses start commands and choose the place of the workspace.

    Args:
        workspace: an empty workspace; the sandbox closes it.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._running: list[Supervisor] = []
        self._snapshots: dict[str, Snapshot] = {}

    @property
    @abstractmethod
    def python(self) -> str:
        """Path of the Python interpreter as seen from inside."""

    @abstractmethod
    def _start(self, argv: Sequence[str], limits: Limits) -> Tree:
        """Start a command in the workspace under ``limits``."""

    @abstractmethod
    def _new(self) -> FolderSandbox:
        """Create an empty sandbox of the same kind."""

    @abstractmethod
    def _remove_workspace(self) -> None:
        """Remove the mount or folder that held the workspace. Idempotent."""

    def _take_snapshot(self) -> Snapshot:
        """Snapshot the workspace's present files; the caller closes it."""
        return Snapshot(self._workspace.keep())

    def _restore(self, snapshot: Snapshot) -> None:
        """Replace the workspace's content. Nothing runs in it meanwhile."""
        self._workspace.restore(snapshot.files)

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
        if not isinstance(cast("object", stdin), bytes):
            raise ContractError(f"stdin is {stdin!r:.60}; expected bytes, such as text.encode()")
        return self._supervise(argv, limits).run(stdin)

    def open(self, argv: Sequence[str], *, limits: Limits = Limits()) -> Peer:
        """See `envkit.sandbox.Sandbox.open`."""
        return self._supervise(argv, limits)

    def snapshot(self) -> str:
        """See `envkit.sandbox.Sandbox.snapshot`."""
        name = f"snapshot-{len(self._snapshots)}"
        self._snapshots[name] = self._take_snapshot()
        return name

    def fork(self, snapshot: str | None = None) -> Sandbox:
        """See `envkit.sandbox.Sandbox.fork`."""
        start = self._take_snapshot() if snapshot is None else self._known(snapshot).share()
        try:
            with system_errors("make a sandbox"):
                fork = self._new()
            try:
                fork._restore(start)
                for name, known in self._snapshots.items():
                    fork._snapshots[name] = known.share()
            except BaseException:
                fork.close()
                raise
            return fork
        finally:
            start.close()

    def reset(self, snapshot: str | None = None) -> None:
        """See `envkit.sandbox.Sandbox.reset`."""
        start = Snapshot({}) if snapshot is None else self._known(snapshot)
        self._kill()
        self._restore(start)

    def close(self) -> None:
        """See `envkit.sandbox.Sandbox.close`."""
        self._kill()
        self._workspace.close()
        while self._snapshots:
            self._snapshots.popitem()[1].close()
        self._remove_workspace()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _known(self, snapshot: str) -> Snapshot:
        if snapshot not in self._snapshots:
            known = ", ".join(self._snapshots) or "none"
            raise UsageError(f"no snapshot {snapshot!r} in this sandbox; it has: {known}")
        return self._snapshots[snapshot]

    def _supervise(self, argv: Sequence[str], limits: Limits) -> Supervisor:
        if isinstance(cast("object", argv), str | bytes):  # would be taken letter by letter
            raise ContractError(f"argv is {argv!r:.60}; expected a list of texts, such as ['sh', '-c', ...]")
        for argument in argv:
            if not isinstance(cast("object", argument), str):
                raise ContractError(f"argv holds {argument!r:.60}; expected texts")
            # An agent may have written the argument, so this is its mistake and not broken machinery.
            if _IMPOSSIBLE.search(argument):
                raise UsageError(
                    f"{argument[:40]!r} holds a NUL or half a surrogate pair, which no command can take; "
                    "remove it"
                )
        with system_errors("start a command"):
            self._workspace.admit()
            began = time.monotonic()
            tree = self._start(argv, limits)
            try:
                supervisor = Supervisor(tree, limits, began)
            except BaseException:  # without a supervisor nothing would enforce the limits
                tree.end()
                tree.release()
                raise
        self._running = [running for running in self._running if not running.closed]
        self._running.append(supervisor)
        return supervisor

    def _kill(self) -> None:
        for supervisor in self._running:
            with contextlib.suppress(SandboxError):  # the tree is dead already, as intended
                supervisor.close()
        self._running.clear()


def require_system_calls() -> None:
    """Raise if this Python lacks calls that sandboxes need, as some builds for old systems do.

    Raises:
        SandboxUnavailable: names the missing one.
    """
    missing = [name for name in ("memfd_create", "pidfd_open") if not hasattr(os, name)]
    if missing:
        raise SandboxUnavailable(
            f"{sys.executable} was built without os.{missing[0]}, which sandboxes need; make the environment "
            "again with the system's Python: make setup PYTHON=/usr/bin/python3"
        )


@contextlib.contextmanager
def system_errors(doing: str) -> Generator[None]:
    """Turn each ``OSError`` into a `SandboxError`, because no command caused it.

    Raises:
        SandboxError: the system refused something, such as open files, processes or space.
    """
    try:
        yield
    except OSError as error:
        raise SandboxError(f"cannot {doing}: {error}") from error


def temporary() -> Path:
    """The folder for temporary files; on the first call removes what killed processes left there."""
    parent = Path(tempfile.gettempdir())
    _reap_once(parent)
    return parent


def reap_leftovers() -> list[str]:
    """Remove temporary folders whose owner is dead, and the control groups that are named after them."""
    names = reap(Path(tempfile.gettempdir()))
    for name in names:
        cgroup.remove_leftovers(name)
    return names


@functools.cache
def _reap_once(parent: Path) -> None:
    reap_leftovers()
