"""The host's half of workspaces that are bounded: each a file system in memory of its own.

They are mounted by `envkit.sandboxes._workspace.guest_mount_helper`, a process in namespaces of its own,
with no more rights on the host than sandboxed code has. The host sees them through descriptors only.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import shutil
import socket
import sys
import threading
from importlib import resources
from pathlib import Path
from typing import Final, final

from envkit.errors import SandboxError, SandboxUnavailable, UnenforceableLimit
from envkit.lease import Lease
from envkit.sandbox import Quota
from envkit.sandboxes._linux import bwrap
from envkit.sandboxes._linux.child import launch
from envkit.sandboxes._rootfs.rootfs import reachable
from envkit.sandboxes._sandbox import temporary

_PATIENCE_S: Final = bwrap.PATIENCE_MS / 1000


@final
class Mount:
    """Where one workspace lies. Whoever asked for it closes it.

    Args:
        steward: who mounted it.
        name: how the steward calls it.
        root: descriptor of the folder; the caller's.
    """

    def __init__(self, steward: _MountHelper, name: str, root: int) -> None:
        self.helper, self.name, self.root = steward, name, root
        self._closed = False

    @property
    def path(self) -> str:
        """The folder, in the steward's namespace of mounts."""
        return str(self.helper.folder / self.name)

    def tree(self) -> int:
        """Descriptor of a mount of it that is attached nowhere yet; the caller closes it.

        Raises:
            SandboxError: the steward is dead, and the workspace lost.
        """
        return self.helper.ask(f"tree {self.name}", 1)[0]

    def entering(self) -> list[str]:
        """The command prefix that runs a program where ``path`` is.

        Raises:
            SandboxError: the steward is dead, and the workspace lost.
        """
        self.helper.require()
        # By its pid, not by descriptors, which would be open in the program as well.
        where = ("--target", str(self.helper.pid), "--user", "--mount")
        return [nsenter(), *where, "--preserve-credentials", "--"]

    def freeze(self) -> None:
        """Let nothing in it change any more.

        Raises:
            SandboxError: the steward is dead, or somebody has a file open to write.
        """
        self.helper.ask(f"freeze {self.name}")

    def close(self) -> None:
        """Unmount it; the memory is free once no program runs in it. Idempotent."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(SandboxError):  # with a dead steward it is unmounted already
                self.helper.ask(f"drop {self.name}")


@final
class SnapshotLayer:
    """Files that lie beneath workspaces and change no more. Thread-safe.

    Args:
        place: a frozen one, unmounted when the last who holds this has closed it. The memory is free once no
            workspace lies above it either.
    """

    def __init__(self, place: Mount) -> None:
        self.place = place
        self._lock = threading.Lock()
        self._held = 1

    def share(self) -> None:
        """Count one more who holds it."""
        with self._lock:
            self._held += 1

    def close(self) -> None:
        """Count one less."""
        with self._lock:
            self._held -= 1
            if self._held:
                return
        self.place.close()


@final
class WorkspaceMounts:
    """This process's steward, replaced when it dies. Thread-safe.

    Args:
        user: host user that sandboxed code runs as.
    """

    def __init__(self, user: int) -> None:
        self._user, self._pid = user, os.getpid()
        self._lock = threading.Lock()
        self._helper: _MountHelper | None = None
        self.lease = Lease(temporary())
        atexit.register(self.close)

    def mount(self, quota: Quota) -> Mount:
        """An empty one, which holds no more than ``space``.

        Raises:
            UnenforceableLimit: this machine lets nobody mount a file system of a size.
            SandboxUnavailable: sandboxed code could not reach it.
            SandboxError: the steward does not start, or died meanwhile.
        """
        return self._living().mount(quota)

    def copies(self) -> str | None:
        """Why snapshots are copied into workspaces here; ``None`` where they are laid beneath.

        Raises:
            SandboxError: as for `place`.
        """
        return self._living().copies

    def close(self) -> None:
        """End the steward and remove the folder. Idempotent."""
        if os.getpid() != self._pid:  # a fork of ours, which owns nothing of this
            return
        with self._lock:
            if self._helper is not None:
                self._helper.close()
        self.lease.close()

    def _living(self) -> _MountHelper:
        if not reachable(self.lease.path, self._user):
            raise SandboxUnavailable(
                f"user {self._user} cannot reach {self.lease.path.parent}; export TMPDIR=/tmp"
            )
        with self._lock:
            if self._helper is None or self._helper.dead:
                if self._helper is not None:
                    self._helper.close()
                self._helper = _MountHelper(self._user, self.lease.path)
            return self._helper


_MAKING = threading.Lock()


def shared_mounts(pid: int, user: int) -> WorkspaceMounts:
    """This process's; keyed by pid too, for a fork of it must have its own."""
    with _MAKING:
        return _made(pid, user)


@functools.cache
def _made(pid: int, user: int) -> WorkspaceMounts:
    return WorkspaceMounts(user)


@functools.cache
def nsenter() -> str:
    """The program that enters namespaces.

    Raises:
        SandboxUnavailable: it is not installed.
    """
    found = shutil.which("nsenter")
    if found is None:
        raise SandboxUnavailable("nsenter, which enters namespaces, is not installed; apt install util-linux")
    return found


@final
class _MountHelper:
    """A running `envkit.sandboxes._workspace.guest_mount_helper`. Thread-safe.

    Args:
        user: who it is.
        folder: where it mounts workspaces, an existing one that ``user`` can reach.
    """

    def __init__(self, user: int, folder: Path) -> None:
        self.folder = folder
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._numbers = itertools.count()
        source = resources.files("envkit.sandboxes._workspace").joinpath("guest_mount_helper.py").read_text()
        # Nothing of this process's environment but what its interpreter may need to find its libraries.
        environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_PATIENCE_S)
        with theirs:
            arguments = (str(theirs.fileno()), str(user), str(folder))
            command = [sys.executable, "-I", "-S", "-c", source, *arguments]
            self._child = launch(command, environment, folder, theirs.fileno())
        try:
            self._receive(0)
        except (SandboxError, OSError) as error:
            self.close()
            raise UnenforceableLimit(
                f"quota: no file system of a fixed size can be mounted here ({error}); see: envkit doctor"
            ) from error

    @property
    def pid(self) -> int:
        """Its process, which no other can take the number of before `close`."""
        return self._child.pid

    @property
    def dead(self) -> bool:
        """Whether it does nothing more."""
        return self._closed or self._child.has_ended()

    def require(self) -> None:
        """Raise unless it lives.

        Raises:
            SandboxError: it is dead.
        """
        if os.getpid() != self._pid:
            raise SandboxError("this sandbox belongs to the process that forked this one; make another")
        if self.dead:
            raise SandboxError("the process that mounts workspaces died, and this one is lost; make another")

    @functools.cached_property
    def copies(self) -> str | None:
        """See `WorkspaceMounts.copies`."""
        try:
            self.ask("try")
        except SandboxError as error:
            self.require()
            return str(error)
        return None

    def mount(self, quota: Quota, lower: Mount | None = None) -> Mount:
        """A place that holds no more than ``space``; the caller closes it.

        Args:
            lower: a frozen place with which it begins, and which counts as well; it is empty without one.

        Raises:
            SandboxError: the steward is dead, or cannot.
        """
        name = str(next(self._numbers))
        word = f"make {name}" if lower is None else f"lay {name} {lower.name}"
        [root] = self.ask(f"{word} {quota.total_bytes} {quota.files}", 1)
        return Mount(self, name, root)

    def ask(self, request: str, descriptors: int = 0) -> list[int]:
        """Send a request; returns the descriptors that it is answered with.

        Raises:
            SandboxError: it is dead or silent, and is asked nothing more; or it says why it cannot.
        """
        with self._lock:
            self.require()
            try:
                self._socket.send(request.encode())
                return self._receive(descriptors)
            except OSError as error:
                self._end()
                raise SandboxError(f"the process that mounts workspaces does not answer: {error}") from error
            except SandboxError:
                raise
            except BaseException:  # a late answer would be taken for that to the next question
                self._end()
                raise

    def close(self) -> None:
        """Kill it. Idempotent."""
        with self._lock:
            self._end()

    def _receive(self, descriptors: int) -> list[int]:
        said, passed, _, _ = socket.recv_fds(self._socket, 4096, descriptors, socket.MSG_CMSG_CLOEXEC)
        if said == b"ok" and len(passed) == descriptors:
            return passed
        for one in passed:
            os.close(one)
        reason = said[1:].decode(errors="replace") or self._last_words()
        raise SandboxError(f"cannot mount a workspace: {reason}")

    def _last_words(self) -> str:
        os.set_blocking(self._child.stderr.fileno(), False)
        said = (self._child.stderr.read() or b"").decode(errors="replace").strip()
        return said[-500:] or "it died"

    def _end(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._socket.close()
        self._child.discard()
