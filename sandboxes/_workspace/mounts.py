"""Workspaces as file systems of a fixed size in memory, mounted by a helper process.

The helper (`envkit.sandboxes._workspace.guest_mount_helper`) lives in its own user and mount namespaces and
has no more rights on the host than sandboxed code. The host reaches the workspaces through descriptors only.

It also mounts the root file systems that sandboxes share: one in memory for each root folder, so that no
sandbox can leave a trace in the page cache for a later one.
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
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Final, final

from envkit.errors import SandboxError, SandboxUnavailable, UnenforceableLimit
from envkit.runtime.lease import Lease
from envkit.sandbox import Quota
from envkit.sandboxes._linux import bwrap
from envkit.sandboxes._linux.child import from_file, launch, memory_file
from envkit.sandboxes._rootfs.rootfs import reachable
from envkit.sandboxes._sandbox import temporary

_PATIENCE_S: Final = bwrap.PATIENCE_MS / 1000
#: For the copy of a folder, which may hold gigabytes on a cold disk.
_COPY_PATIENCE_S: Final = 600.0


@final
class Mount:
    """One mounted file system. Its owner closes it.

    Args:
        helper: the process that mounted it.
        name: its name in requests to the helper.
        root: descriptor of its folder; the owner closes it.
    """

    def __init__(self, helper: MountHelper, name: str, root: int) -> None:
        self.helper, self.name, self.root = helper, name, root
        self._closed = False

    @property
    def path(self) -> str:
        """Path of its folder in the helper's mount namespace."""
        return str(self.helper.folder / self.name)

    def clone(self) -> int:
        """Descriptor of a detached copy of the mount, to be attached elsewhere; the caller closes it.

        Raises:
            SandboxError: the helper is dead, and the workspace lost.
        """
        return self.helper.ask(f"clone {self.name}", 1)[0]

    def entering(self) -> list[str]:
        """The command prefix that runs a program in the helper's namespaces, where ``path`` exists.

        Raises:
            SandboxError: the helper is dead, and the workspace lost.
        """
        return self.helper.entering()

    def freeze(self) -> None:
        """Remount it read-only.

        Raises:
            SandboxError: the helper is dead, or a program has a file open for writing.
        """
        self.helper.ask(f"freeze {self.name}")

    def close(self) -> None:
        """Unmount it. The memory is freed once no program uses it. Idempotent."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(SandboxError):  # a dead helper's mounts are gone already
                self.helper.ask(f"unmount {self.name}")


@final
class Root:
    """A read-only copy of a folder in memory, which is the root of sandboxes or a part of it.

    Args:
        helper: the process that made it, and that holds the locks on its files.
        name: its name in requests to the helper.
    """

    def __init__(self, helper: MountHelper, name: str) -> None:
        self.helper = helper
        self.path = str(helper.folder / name)


@final
class SnapshotLayer:
    """A read-only file system beneath workspaces, with a reference count. Thread-safe.

    Args:
        mount: a frozen mount. The last `close` unmounts it. Its memory is freed once no workspace lies above.
    """

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self._lock = threading.Lock()
        self._references = 1

    def share(self) -> None:
        """Add a reference."""
        with self._lock:
            self._references += 1

    def close(self) -> None:
        """Drop a reference."""
        with self._lock:
            self._references -= 1
            if self._references:
                return
        self.mount.close()


@final
class WorkspaceMounts:
    """This process's mount helper, replaced when it dies. Thread-safe.

    Args:
        user: host user that sandboxed code runs as.
    """

    def __init__(self, user: int) -> None:
        self._user, self._pid = user, os.getpid()
        self._lock = threading.Lock()
        self._helper: MountHelper | None = None
        self.lease = Lease(temporary())
        atexit.register(self.close)

    def mount(self, quota: Quota) -> Mount:
        """Mount an empty file system of at most ``quota``; the caller closes it.

        Raises:
            UnenforceableLimit: file systems of a fixed size cannot be mounted on this machine.
            SandboxUnavailable: sandboxed code could not reach it.
            SandboxError: the helper does not start, or has just died.
        """
        return self._living().mount(quota)

    def root(self, folder: Path) -> Root:
        """A folder's copy in memory, made on first use and shared by all sandboxes of this process.

        Raises:
            SandboxUnavailable: it cannot be made; the message says why.
            SandboxError: as for `mount`.
        """
        return self._living().root(folder)

    def copies(self) -> str | None:
        """The reason why snapshots are copied on this machine; ``None`` if they are mounted as layers.

        Raises:
            SandboxError: as for `mount`.
        """
        return self._living().copies

    def close(self) -> None:
        """End the helper and remove its folder. Idempotent."""
        if os.getpid() != self._pid:  # a fork of this process does not own it
            return
        with self._lock:
            if self._helper is not None:
                self._helper.close()
        self.lease.close()

    def _living(self) -> MountHelper:
        if not reachable(self.lease.path, self._user):
            raise SandboxUnavailable(
                f"user {self._user} cannot reach {self.lease.path.parent}; export TMPDIR=/tmp"
            )
        with self._lock:
            if self._helper is None or self._helper.dead:
                if self._helper is not None:
                    self._helper.close()
                self._helper = MountHelper(self._user, self.lease.path)
            return self._helper


_MAKING = threading.Lock()


def shared_mounts(pid: int, user: int) -> WorkspaceMounts:
    """Return this process's mount helper. Keyed by pid, because a fork needs its own."""
    with _MAKING:
        return _made(pid, user)


@functools.cache
def _made(pid: int, user: int) -> WorkspaceMounts:
    return WorkspaceMounts(user)


@functools.cache
def nsenter() -> str:
    """Path of ``nsenter``.

    Raises:
        SandboxUnavailable: it is not installed.
    """
    found = shutil.which("nsenter")
    if found is None:
        raise SandboxUnavailable("nsenter, which enters namespaces, is not installed; apt install util-linux")
    return found


@final
class MountHelper:
    """A running `envkit.sandboxes._workspace.guest_mount_helper`. Thread-safe.

    Args:
        user: the user that it runs as.
        folder: an existing folder that ``user`` can reach, in which it mounts workspaces.
    """

    def __init__(self, user: int, folder: Path) -> None:
        self.folder = folder
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._numbers = itertools.count()
        self._roots: dict[Path, Root] = {}
        self._laying = threading.Lock()
        source = resources.files("envkit.sandboxes._workspace").joinpath("guest_mount_helper.py").read_text()
        # Of this process's environment, only what the interpreter may need to find its libraries.
        environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_PATIENCE_S)
        with theirs:
            arguments = (str(theirs.fileno()), str(user), str(folder))
            file = memory_file(source.encode())
            try:
                program = from_file(file, "envkit mounts workspaces")
                command = [sys.executable, "-I", "-S", "-c", program, *arguments]
                self._child = launch(command, environment, folder, theirs.fileno(), file)
            finally:
                os.close(file)
        try:
            self._receive(0)
        except (SandboxError, OSError) as error:
            self.close()
            raise UnenforceableLimit(
                f"quota: no file system of a fixed size can be mounted here ({error}); see: envkit doctor"
            ) from error

    @property
    def pid(self) -> int:
        """Its process id. Not reused before `close`, because only that reaps the process."""
        return self._child.pid

    @property
    def dead(self) -> bool:
        """True if it has ended."""
        return self._closed or self._child.has_ended()

    def require(self) -> None:
        """Raise if it is dead, or belongs to another process.

        Raises:
            SandboxError: it cannot be used.
        """
        if os.getpid() != self._pid:
            raise SandboxError("this sandbox belongs to the process that forked this one; make another")
        if self.dead:
            raise SandboxError("the process that mounts workspaces died, and this one is lost; make another")

    @functools.cached_property
    def copies(self) -> str | None:
        """See `WorkspaceMounts.copies`."""
        try:
            self.ask("probe")
        except SandboxError as error:
            self.require()
            return str(error)
        return None

    def mount(self, quota: Quota, lower: Mount | None = None) -> Mount:
        """Mount a file system of at most ``quota``; the caller closes it.

        Args:
            quota: its limit.
            lower: a frozen mount whose files it starts with, which count as well; ``None`` for an empty one.

        Raises:
            SandboxError: the helper is dead, or the kernel refuses.
        """
        name = str(next(self._numbers))
        word = f"make {name}" if lower is None else f"overlay {name} {lower.name}"
        [root] = self.ask(f"{word} {quota.total_bytes} {quota.files}", 1)
        return Mount(self, name, root)

    def root(self, folder: Path) -> Root:
        """See `WorkspaceMounts.root`."""
        with self._laying:
            if folder not in self._roots:
                name = f"root-{next(self._numbers)}"
                self.require()
                try:
                    self.ask(f"lay {name} {os.fsencode(folder).hex()}", patience_s=_COPY_PATIENCE_S)
                except SandboxError as error:
                    if self.dead:
                        raise
                    raise SandboxUnavailable(
                        f"cannot copy {folder} into memory: {error}; it needs memory for the folder (see: "
                        f"du -sh {folder}), and the system one open file for each file in it (see: "
                        "sysctl fs.file-max)"
                    ) from error
                self._roots[folder] = Root(self, name)
            return self._roots[folder]

    def confine(
        self,
        init: int,
        pids: Sequence[int],
        bounds: Iterable[tuple[int, int]],
        meanwhile: Callable[[], object],
    ) -> None:
        """Hide all but own processes in a new sandbox's ``/proc``, and set limits of its processes.

        Even root may lack the right to set limits of another user's processes; the helper is that user.

        Args:
            init: its process 1, which must have been started in the helper's namespaces.
            pids: the processes to limit.
            bounds: kind and value of each limit.
            meanwhile: called while the helper works; its exceptions are passed on.

        Raises:
            SandboxError: the helper is dead, a process is, or the kernel refuses.
        """
        values = " ".join(f"{kind}={bound}" for kind, bound in bounds)
        failed: list[Exception] = []

        def work() -> None:
            try:
                meanwhile()
            except Exception as error:  # raised below, once the helper has answered
                failed.append(error)

        self.ask(f"confine {init} {','.join(map(str, pids))} {values}", meanwhile=work)
        if failed:
            raise failed[0]

    def entering(self) -> list[str]:
        """See `Mount.entering`."""
        self.require()
        # By pid and not by descriptors, because the program would inherit those.
        where = ("--target", str(self.pid), "--user", "--mount")
        return [nsenter(), *where, "--preserve-credentials", "--"]

    def ask(
        self,
        request: str,
        descriptors: int = 0,
        meanwhile: Callable[[], None] | None = None,
        patience_s: float = _PATIENCE_S,
    ) -> list[int]:
        """Send a request; returns the descriptors of the answer. Calls ``meanwhile`` before it waits.

        Waits for ``patience_s`` seconds at most.

        Raises:
            SandboxError: it refuses and says why; or it is dead or silent, and later requests fail too.
        """
        with self._lock:
            self.require()
            try:
                self._socket.settimeout(patience_s)
                self._socket.send(request.encode())
                if meanwhile is not None:
                    meanwhile()
                return self._receive(descriptors)
            except OSError as error:
                self._end()
                raise SandboxError(f"the process that mounts workspaces does not answer: {error}") from error
            except SandboxError:
                raise
            except BaseException:  # a late answer would be taken for that to the next request
                self._end()
                raise

    def close(self) -> None:
        """Kill it. Idempotent."""
        with self._lock:
            self._end()

    def _receive(self, descriptors: int) -> list[int]:
        reply, passed, _, _ = socket.recv_fds(self._socket, 4096, descriptors, socket.MSG_CMSG_CLOEXEC)
        if reply == b"ok" and len(passed) == descriptors:
            return passed
        for descriptor in passed:
            os.close(descriptor)
        reason = reply[1:].decode(errors="replace") or self._stderr()
        raise SandboxError(f"cannot mount a workspace: {reason}")

    def _stderr(self) -> str:
        os.set_blocking(self._child.stderr.fileno(), False)
        text = (self._child.stderr.read() or b"").decode(errors="replace").strip()
        return text[-500:] or "the mount helper died"

    def _end(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._socket.close()
        self._child.discard()
