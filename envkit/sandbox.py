"""The sandbox protocol: a place where hostile code runs and from where only chosen bytes return."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self, runtime_checkable

from envkit.errors import ConfigError, UsageError

#: Where a backend's ``packages`` lie, as seen from inside. Nothing puts this on a program's path by itself.
PACKAGES: Final = "/usr/lib/packages"
#: How a sandbox's Python is asked to run a program that finds nothing but the standard library. Unlike
#: ``-I``, these options let the sandbox's environment speak, so that sets have the same order on every run.
PYTHON_OPTIONS: Final = ("-P", "-S")


class StopReason(enum.StrEnum):
    """Why a command is no longer running."""

    EXITED = "exited"
    SIGNALED = "signaled"
    CPU = "cpu limit"
    WALL = "wall limit"
    MEMORY = "memory limit"
    OUTPUT = "output limit"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one command may use. CPU time decides verdicts; wall time is only a backstop.

    Args:
        cpu_s: CPU seconds of the command's whole process tree.
        wall_s: wall seconds until the tree is killed.
        memory_bytes: memory of the tree (address space per process where there is no cgroup).
        processes: processes and threads alive at once in the tree.
        output_bytes: bytes kept of stdout and stderr each; one byte more stops the command.
        disk_bytes: size of any one file the command writes; for all together see `Quota`.
    """

    cpu_s: float = 5.0
    wall_s: float = 20.0
    memory_bytes: int = 512 * 2**20
    processes: int = 32
    output_bytes: int = 2**20
    disk_bytes: int = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Quota:
    """What all files of one workspace may take together, over all commands. What exceeds it fails (ENOSPC).

    A workspace that is bounded lies in memory, and what a command writes there counts as its memory while it
    runs. Many sandboxes at once may take this much each. What a workspace begins with, after `Sandbox.reset`
    to a snapshot or in a `Sandbox.fork`, may go on counting when it is deleted or replaced.

    Args:
        total_bytes: of content, in whole pages; deleted files count while they are open, holes do not.
        files: regular files, folders and links of both kinds; at least 2.
    """

    total_bytes: int = 128 * 2**20
    files: int = 16_000

    def __post_init__(self) -> None:
        if self.total_bytes < 1 or self.files < 2:  # a file system takes 0 for no bound
            raise UsageError(f"{self} has no room for a file; expected at least 1 byte and 2 files")


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a finished command left behind.

    Args:
        stop: why it ended. Every process of its tree is dead by then.
        exit: exit status for ``EXITED``, else ``None``.
        stdout: at most ``Limits.output_bytes`` bytes.
        stderr: likewise.
        truncated: output was cut.
        cpu_s: CPU seconds used, as far as the backend can see.
        wall_s: wall seconds.
        peak_memory_bytes: peak resident memory, 0 where unknown.
    """

    stop: StopReason
    exit: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool
    cpu_s: float
    wall_s: float
    peak_memory_bytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether the command ended by itself, with status 0."""
        return self.stop is StopReason.EXITED and self.exit == 0


class PeerGone(Exception):
    """The program at the other end of a `Peer` ended, stalled or broke the framing.

    Not a `SandboxError`: a candidate can cause it, so it is the candidate's failure.

    Args:
        reason: what happened, for people.
        tampered: it wrote what an honest program never writes.
    """

    def __init__(self, reason: str, *, tampered: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.tampered = tampered


class Peer(Protocol):
    """A running sandboxed program that answers one line per line asked. Owned by whoever opened it."""

    def ask(self, line: bytes, timeout_s: float) -> bytes:
        """Send one line (without its newline) and return the next line of stdout, newline stripped.

        Raises:
            PeerGone: the program ended, exceeded a limit or was silent for ``timeout_s``.
            SandboxError: the machinery failed.
        """
        ...

    def close(self) -> ExecResult:
        """Kill the whole process tree and say how it ended. Idempotent."""
        ...


@runtime_checkable
class Sandbox(Protocol):
    """A private workspace in which commands run with nothing but interpreter and standard library.

    Commands see the workspace as the current directory and as ``$HOME``, read-write; the host's
    site-packages, home folders and network are absent. Not thread-safe: one owner at a time.
    """

    @property
    def python(self) -> str:
        """Path of the Python interpreter as seen from inside."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write one regular file; parents are made. ``path`` is relative, inside the workspace.

        Raises:
            UsageError: the path is absolute, leaves the workspace or runs through a symlink.
            TooLargeError: the workspace is full; see `SandboxBackend.quota`.
        """
        ...

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Read one regular file of at most ``limit_bytes`` without following symlinks.

        Raises:
            FileNotFoundError: no regular file of that name.
            UsageError: not a safe path.
            TooLargeError: the file is larger.
        """
        ...

    def export(self, globs: Sequence[str], limit_bytes: int) -> Mapping[str, bytes]:
        """The regular files that match, symlinks neither listed nor followed, in path order.

        Raises:
            TooLargeError: more than ``limit_bytes`` in total.
            UsageError: too many files to look through.
        """
        ...

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", limits: Limits = Limits()) -> ExecResult:
        """Run a command to its end; returns only when its whole process tree is dead.

        Raises:
            UsageError: a word of the command holds a NUL, or half a surrogate pair.
            UnenforceableLimit: a limit that this backend cannot enforce.
            SandboxError: the machinery failed; never because of what the command did.
        """
        ...

    def open(self, argv: Sequence[str], *, limits: Limits = Limits()) -> Peer:
        """Start a program that talks in lines; the caller closes the peer."""
        ...

    def snapshot(self) -> str:
        """Keep the workspace's present files; returns a name for `reset` and `fork`.

        Regular files with their contents and permission bits are kept, and the folders that they lie in.
        Processes go on; what they write meanwhile may be kept or not.

        Raises:
            TooLargeError: they are more than a workspace has room for, once holes are filled.
        """
        ...

    def fork(self, snapshot: str | None = None) -> Sandbox:
        """A fresh sandbox of the same kind, which begins with a snapshot, or with the present files.

        Nothing but files is in common: no process, and no change of either. The fork knows this sandbox's
        snapshots up to now, and neither needs the other to live on. The caller closes it.

        Many may be made from one snapshot. Where a backend lays that beneath them (see `reset`), each costs
        the same, whatever is in it.

        Args:
            snapshot: a name that `snapshot` gave; ``None`` to keep the present files for this fork alone.

        Raises:
            UsageError: no such snapshot.
            TooLargeError: as for `snapshot`.
        """
        ...

    def reset(self, snapshot: str | None = None) -> None:
        """Kill every process, then empty the workspace or restore a snapshot.

        A backend may lay the snapshot beneath the workspace instead of copying it, here and in `fork`. Then
        none of its folders can be renamed (EXDEV), as in the image of a container; what moves them copies.

        Raises:
            UsageError: no such snapshot.
        """
        ...

    def close(self) -> None:
        """Kill every process and remove every trace. Idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SandboxBackend(Protocol):
    """Makes sandboxes of one kind. Thread-safe.

    Class attributes say what it can promise; training refuses a backend with ``isolated = False``.
    """

    name: str
    #: no network, no host files beyond interpreter and standard library, no other processes.
    isolated: bool
    #: Distributions that programs can import from `PACKAGES`; none unless asked for.
    packages: Sequence[str] = ()
    #: What bounds each workspace; ``None`` where nothing does.
    quota: Quota | None = None

    def available(self) -> str | None:
        """``None`` when usable here, else one line that says what is missing and how to mend it."""
        ...

    def with_packages(self, packages: Sequence[str], warm: Sequence[str] = ()) -> SandboxBackend:
        """A backend that is otherwise like this one, whose sandboxes hold further packages as well.

        Args:
            packages: distributions, pure Python ones that are installed here.
            warm: modules of theirs, which a backend that imports beforehand is to import.

        Raises:
            ConfigError: sandboxes of this kind hold no packages.
        """
        said = f"sandbox {self.name!r} cannot hold {packages[0]}"
        raise ConfigError(f"{said}; choose another, see: envkit list")

    def create(self) -> Sandbox:
        """A fresh, empty sandbox; the caller closes it.

        Raises:
            SandboxUnavailable: this machine cannot run it.
        """
        ...
