"""What every backend shares whose workspace the host reaches as a folder."""

from __future__ import annotations

import contextlib
import functools
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from envkit.errors import SandboxError, UsageError
from envkit.sandbox import ExecResult, Limits, Peer, Sandbox
from envkit.sandboxes._lease import reap
from envkit.sandboxes._linux import cgroup
from envkit.sandboxes._supervisor import Supervisor, Tree
from envkit.sandboxes._workspace.files import File, Workspace

if TYPE_CHECKING:
    from envkit.sandboxes._workspace.mounts import SnapshotLayer

#: What no word of a command can hold.
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a workspace may begin with.

    Args:
        files: to be written into it, in path order.
        layer: lies beneath it, where workspaces are mounts.
    """

    files: Mapping[str, File]
    layer: SnapshotLayer | None = None

    def share(self) -> Snapshot:
        """The same, for another sandbox to close."""
        if self.layer is not None:
            self.layer.share()
        return self

    def close(self) -> None:
        """Let go of it; called once by each who holds it."""
        if self.layer is not None:
            self.layer.close()


class FolderSandbox(ABC):
    """A `envkit.sandbox.Sandbox` whose subclass says how a command starts, and where the workspace lies.

    Args:
        workspace: an empty one; the sandbox closes it.
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
    def _another(self) -> FolderSandbox:
        """An empty sandbox of the same kind."""

    @abstractmethod
    def _vacate(self) -> None:
        """Remove the place where the workspace lay. Idempotent."""

    def _keep(self) -> Snapshot:
        """The workspace's present files; the caller closes them."""
        return Snapshot(self._workspace.keep())

    def _begin(self, snapshot: Snapshot) -> None:
        """Have the workspace begin anew; nothing runs in it."""
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
        return self._supervise(argv, limits).run(stdin)

    def open(self, argv: Sequence[str], *, limits: Limits = Limits()) -> Peer:
        """See `envkit.sandbox.Sandbox.open`."""
        return self._supervise(argv, limits)

    def snapshot(self) -> str:
        """See `envkit.sandbox.Sandbox.snapshot`."""
        name = f"snapshot-{len(self._snapshots)}"
        self._snapshots[name] = self._keep()
        return name

    def fork(self, snapshot: str | None = None) -> Sandbox:
        """See `envkit.sandbox.Sandbox.fork`."""
        beginning = self._keep() if snapshot is None else self._known(snapshot).share()
        try:
            with machinery("make a sandbox"):
                made = self._another()
            try:
                made._begin(beginning)
                for name, known in self._snapshots.items():
                    made._snapshots[name] = known.share()
            except BaseException:
                made.close()
                raise
            return made
        finally:
            beginning.close()

    def reset(self, snapshot: str | None = None) -> None:
        """See `envkit.sandbox.Sandbox.reset`."""
        beginning = Snapshot({}) if snapshot is None else self._known(snapshot)
        self._kill()
        self._begin(beginning)

    def close(self) -> None:
        """See `envkit.sandbox.Sandbox.close`."""
        self._kill()
        self._workspace.close()
        while self._snapshots:
            self._snapshots.popitem()[1].close()
        self._vacate()

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
        for word in argv:
            # Words of an agent's, perhaps: what no system can start is not the machinery's failure.
            if _IMPOSSIBLE.search(word):
                raise UsageError(f"{word[:40]!r} holds a NUL or half a surrogate pair; no command takes that")
        self._workspace.admit()
        with machinery("start a command"):
            tree = self._start(argv, limits)
            try:
                supervisor = Supervisor(tree, limits)
            except BaseException:  # nobody would keep it to its limits
                tree.end()
                tree.release()
                raise
        self._running = [each for each in self._running if not each.closed]
        self._running.append(supervisor)
        return supervisor

    def _kill(self) -> None:
        for supervisor in self._running:
            with contextlib.suppress(SandboxError):  # it died on its own, which is what we want
                supervisor.close()
        self._running.clear()


@contextlib.contextmanager
def machinery(doing: str) -> Generator[None]:
    """What the system refuses here, such as open files, processes or space, is no part of a command's doing.

    Raises:
        SandboxError: in place of each ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise SandboxError(f"cannot {doing}: {error}") from error


def temporary() -> Path:
    """The folder for temporary files, without what dead processes of ours have left in it."""
    parent = Path(tempfile.gettempdir())
    _reap_once(parent)
    return parent


def reap_leftovers() -> list[str]:
    """Remove temporary folders whose owner is dead, and the control groups named after them."""
    names = reap(Path(tempfile.gettempdir()))
    for name in names:
        cgroup.remove_leftovers(name)
    return names


@functools.cache
def _reap_once(parent: Path) -> None:
    reap_leftovers()
