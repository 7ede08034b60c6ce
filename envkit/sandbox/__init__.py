"""The sandbox protocol: runs hostile code in a private workspace and returns only the bytes asked for."""

from __future__ import annotations

import copy
import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, runtime_checkable

from envkit.errors import ConfigError, UsageError

#: Folder of `Contents.packages`, as seen from inside. Python searches it last, and not with `PYTHON_OPTIONS`.
PACKAGES: Final = "/usr/lib/packages"
#: Folder of `Contents.data`, as seen from inside.
DATA: Final = "/data"
#: What `Contents.image` begins with if it is a folder with an OCI image layout.
OCI_LAYOUT: Final = "oci:"
#: Options for a sandbox's Python that let a program import only the standard library. Unlike with ``-I``,
#: Python reads the sandbox's environment variables, so that sets have the same order on every run.
PYTHON_OPTIONS: Final = ("-P", "-S")


def guest_source(package: str, name: str) -> str:
    """Return the source of a program that runs in sandboxes, from a file of a package."""
    return resources.files(package).joinpath(name).read_text("utf-8")


class StopReason(enum.StrEnum):
    """The reason why a command ended."""

    EXITED = "exited"
    SIGNALED = "signaled"
    CPU = "cpu limit"
    WALL = "wall limit"
    MEMORY = "memory limit"
    OUTPUT = "output limit"


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits of one command. CPU time decides verdicts; wall time is only a backstop.

    Args:
        cpu_s: CPU seconds of the command's whole process tree.
        wall_s: wall seconds until the tree is killed.
        memory_bytes: memory of the tree; without a control group, address space per process.
        processes: processes and threads of the tree at the same time.
        output_bytes: bytes of stdout and of stderr; one byte more stops the command.
        disk_bytes: size of each file that the command writes; for the total see `Quota`.
    """

    cpu_s: float = 5.0
    wall_s: float = 20.0
    memory_bytes: int = 512 * 2**20
    processes: int = 32
    output_bytes: int = 2**20
    disk_bytes: int = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of one workspace, for all its files and commands together. Writes beyond it fail (ENOSPC).

    A workspace with a quota lies in memory, and what a command writes there counts as its memory while it
    runs. Each sandbox can use its whole quota at the same time. Files that a workspace starts with, after
    `Sandbox.reset` to a snapshot or in a `Sandbox.fork`, may still count after they are deleted or replaced.

    Args:
        total_bytes: content, in whole pages; deleted files count while they are open, holes do not.
        files: regular files, folders, hard links and symlinks; at least 2.
    """

    total_bytes: int = 128 * 2**20
    files: int = 16_000

    def __post_init__(self) -> None:
        if self.total_bytes < 1 or self.files < 2:  # to a file system, 0 means no limit
            raise UsageError(f"{self} has no room for a file; expected at least 1 byte and 2 files")


@dataclass(frozen=True, slots=True)
class Contents:
    """What sandboxes hold, read-only, beside Python and its standard library.

    Args:
        packages: lines of a pip requirements file, such as ``pandas==2.3.3``, with ``--hash`` if wanted. Only
            wheels are installed, with what they depend on.
        toolchains: other languages, with a version if wanted: ``node`` or ``node==22.*``.
        data: absolute paths of files and folders; each appears in `DATA` under its own name.
        image: OCI image that takes the place of envkit's own root, such as ``python:3.12-slim``, or
            ``oci:PATH`` for a folder with an OCI image layout. It brings its own packages and languages.

    Raises:
        ConfigError: packages or toolchains beside an image, or two data files of one name.
    """

    packages: tuple[str, ...] = ()
    toolchains: tuple[str, ...] = ()
    data: tuple[Path, ...] = ()
    image: str = ""

    def __post_init__(self) -> None:
        if self.image and (added := (*self.packages, *self.toolchains)):
            raise ConfigError(
                f"{added[0]!r} cannot be added to image {self.image!r}, which brings its own packages and "
                "languages; install it in the image"
            )
        names = [path.name for path in self.data]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"two data files are called {twice[0]!r}, and {DATA} can hold one; rename one")

    def __or__(self, other: Contents) -> Contents:
        """Both together. If both name an image, the other's."""
        return Contents(
            tuple(dict.fromkeys((*self.packages, *other.packages))),
            tuple(dict.fromkeys((*self.toolchains, *other.toolchains))),
            tuple(dict.fromkeys((*self.data, *other.data))),
            other.image or self.image,
        )


@dataclass(frozen=True, slots=True)
class Lock:
    """Exactly what sandboxes hold for a `Contents`: versions and digests, for reports and certificates.

    Args:
        packages: ``NAME==VERSION --hash=sha256:HEX`` for each wheel, those of toolchains included, sorted.
        data: SHA-256 over names and contents of the data files, as hex; empty if there are none.
        image: ``NAME@sha256:HEX``, or the image's id if no registry has it; empty if there is none.
    """

    packages: tuple[str, ...] = ()
    data: str = ""
    image: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 over all fields, as hex; empty if sandboxes hold nothing beside Python."""
        return "" if self == Lock() else hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def __str__(self) -> str:
        """A line for people: image, versions, and the beginning of the digest."""
        versions = (line.partition(" ")[0].replace("==", " ") for line in self.packages)
        parts = [*filter(None, (self.image,)), *versions, *(["data"] if self.data else [])]
        return f"{', '.join(parts)} ({self.digest[:12]})" if parts else ""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """The result of a finished command.

    Args:
        stop: why it ended. All processes of its tree are dead.
        exit: exit status for ``EXITED``, else ``None``.
        stdout: at most ``Limits.output_bytes`` bytes.
        stderr: at most ``Limits.output_bytes`` bytes.
        truncated: output was cut off.
        cpu_s: CPU seconds, as far as the backend can measure.
        wall_s: wall seconds.
        peak_memory_bytes: peak resident memory, 0 if unknown.
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
        """True if the command ended by itself with status 0."""
        return self.stop is StopReason.EXITED and self.exit == 0


class PeerGone(Exception):
    """The program at the other end of a `Peer` ended, stalled or broke the framing.

    Not a `SandboxError`: a candidate can cause it, so it is the candidate's failure.

    Args:
        reason: what happened, for a human reader.
        tampered: it wrote something that an honest program never writes.
        timed_out: wall time ended it, by a limit or as silence. On a stalled machine that happens to healthy
            programs too.
    """

    def __init__(self, reason: str, *, tampered: bool = False, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.tampered = tampered
        self.timed_out = timed_out


class Peer(Protocol):
    """A running sandboxed program that answers each line with one line. Its opener closes it."""

    def ask(self, line: bytes, timeout_s: float) -> bytes:
        """Send one line (without its newline) and return the next line of stdout, newline stripped.

        Raises:
            PeerGone: the program ended, exceeded a limit or was silent for ``timeout_s``.
            SandboxError: the machinery failed.
        """
        ...

    def close(self) -> ExecResult:
        """Kill the whole process tree and return its result. Idempotent."""
        ...


@runtime_checkable
class Sandbox(Protocol):
    """A private workspace in which commands run, with a Python interpreter and its standard library.

    The workspace is the current directory and ``$HOME`` of commands, read-write. Other packages, languages
    and data are there only if the backend's `Contents` name them. The host's site-packages, home folders and
    network are absent. Not thread-safe: one owner at a time.
    """

    @property
    def python(self) -> str:
        """Path of the Python interpreter as seen from inside."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write one regular file and create its parent folders. ``path`` is relative, inside the workspace.

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
        """Return the matching regular files in path order. Symlinks are neither listed nor followed.

        Raises:
            TooLargeError: more than ``limit_bytes`` in total.
            UsageError: too many files to look through.
        """
        ...

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", limits: Limits = Limits()) -> ExecResult:
        """Run a command to its end; returns only when its whole process tree is dead.

        Raises:
            UsageError: an argument holds a NUL or half a surrogate pair.
            ContractError: ``argv`` is no list of texts, or ``stdin`` no bytes.
            UnenforceableLimit: this backend cannot enforce one of the limits.
            SandboxError: the machinery failed; never because of something the command did.
        """
        ...

    def open(self, argv: Sequence[str], *, limits: Limits = Limits()) -> Peer:
        """Start a program that answers lines; the caller closes the peer. Raises as `run`."""
        ...

    def snapshot(self) -> str:
        """Snapshot the workspace's present files; returns a name for `reset` and `fork`.

        Keeps regular files with content and permission bits, and the folders that they lie in. Processes keep
        running; files that they write meanwhile may be included or not.

        Raises:
            TooLargeError: the files need more than the quota, because copies of sparse files have no holes.
        """
        ...

    def fork(self, snapshot: str | None = None) -> Sandbox:
        """A new sandbox of the same kind, which starts with the files of a snapshot or the present files.

        It shares no processes with this sandbox, and later changes of either do not affect the other. It has
        this sandbox's snapshots so far. Each can be closed first. The caller closes the fork.

        If a backend mounts the snapshot as a layer (see `reset`), a fork of any size takes the same time.

        Args:
            snapshot: a name that `snapshot` returned; ``None`` for the present files.

        Raises:
            UsageError: there is no such snapshot.
            TooLargeError: as for `snapshot`.
        """
        ...

    def reset(self, snapshot: str | None = None) -> None:
        """Kill every process, then empty the workspace or restore a snapshot.

        A backend may mount the snapshot as a layer beneath the workspace instead of copying it, here and in
        `fork`. Then its folders cannot be renamed (EXDEV), as in a container's image; ``shutil.move`` copies.

        Raises:
            UsageError: there is no such snapshot.
        """
        ...

    def close(self) -> None:
        """Kill all processes and remove all files. Idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SandboxBackend(Protocol):
    """Creates sandboxes of one kind. Thread-safe.

    Its class attributes describe it. Training refuses a backend with ``isolated = False``.
    """

    name: str
    #: True if code reaches no network, no other processes and no host files but Python and its library.
    isolated: bool
    #: What its sandboxes hold beside Python.
    contents: Contents = Contents()
    #: Modules that they import ahead, if sandboxes of this kind do that.
    warm: Sequence[str] = ()
    #: Limit of each workspace; ``None`` if there is none.
    quota: Quota | None = None

    def available(self) -> str | None:
        """Return ``None`` if it works here, else one line: what is missing, and the command that mends it."""
        ...

    @property
    def lock(self) -> Lock:
        """Versions and digests of its `contents`.

        Raises:
            ConfigError, SandboxUnavailable: as for `with_contents`.
        """
        return Lock()

    def with_contents(self, contents: Contents, warm: Sequence[str] = ()) -> SandboxBackend:
        """A copy of this backend whose sandboxes hold ``contents`` instead of its own, with `warm` set.

        Packages are installed by this call, once per machine.

        Args:
            contents: usually ``backend.contents | more``.
            warm: modules of trusted packages, or of the standard library, to import ahead, if the backend
                does that. They are imported with more rights than a command has.

        Raises:
            ConfigError: sandboxes of this kind cannot hold them; or there is no such package, no wheel of it
                for this Python, or no such file.
            SandboxUnavailable: the package index or the image registry cannot be reached.
        """
        if contents == self.contents:
            made = copy.copy(self)
            made.warm = (*warm,)  # asked for, whether or not it imports ahead
            return made
        added = (*contents.packages, *contents.toolchains, *map(str, contents.data), contents.image)
        raise ConfigError(
            f"sandbox {self.name!r} cannot hold {added[0]!r}; choose another sandbox: envkit list"
        )

    def create(self) -> Sandbox:
        """A new, empty sandbox; the caller closes it.

        Raises:
            SandboxUnavailable: this machine cannot run it.
        """
        ...
