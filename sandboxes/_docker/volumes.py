"""Workspaces for containers: volumes in memory of a given size, and a container that keeps them mounted.

The engine mounts such a volume for the first container that has it, and unmounts it after the last: all files
are gone then. So a container of its own has them all, in which nothing runs but a few trusted lines
(`envkit.sandboxes._docker.guest_volumes`). It passes descriptors of the folders to the host. One holds
several volumes, made ahead, so that hardly any sandbox waits for it. No volume is used twice.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, final

from envkit.errors import SandboxError
from envkit.lease import Lease
from envkit.sandbox import PYTHON_OPTIONS, Quota
from envkit.sandboxes._linux import bwrap, seccomp
from envkit.sandboxes._rootfs.rootfs import PYTHON, WORKSPACE
from envkit.sandboxes._sandbox import temporary

#: Where a container finds the socket to the host.
CONTROL: Final = "/run/envkit"
PATIENCE_S: Final = 30.0
#: Label of a container that holds workspaces: how many.
HOLDS: Final = "envkit.holds"
_VOLUMES: Final = 8
#: Memory and processes of a container that only holds; what starts it has several threads.
_HOLDER_BYTES, _HOLDER_PROCESSES = 64 * 2**20, 16


@final
class Volume:
    """One workspace. Whoever took it closes it.

    Args:
        holder: what keeps it mounted.
        mount: how a container gets it, as `docker` wants to be told.
        root: descriptor of its folder; the caller's.
    """

    def __init__(self, holder: _VolumeContainer, mount: Any, root: int) -> None:
        self._holder, self.mount, self.root = holder, mount, root
        self._pid, self._closed = os.getpid(), False

    def close(self) -> None:
        """Give it up; with the last one the container goes as well. Idempotent."""
        if not self._closed and os.getpid() == self._pid:  # a fork of ours owns nothing of this
            self._closed = True
            self._holder.release()


@final
class VolumePool:
    """Volumes of one kind. Thread-safe; owned by this process, and closed with it.

    Args:
        client: the Docker client.
        tag: an image with the sandbox's Python.
        runtime: what runs containers, if not the engine's own choice.
        user: host user that sandboxed code runs as.
        quota: what each volume may hold.
        labels: those of what belongs to the owner of a lease folder.
    """

    def __init__(
        self,
        client: Any,
        tag: str,
        runtime: str | None,
        user: int,
        quota: Quota,
        labels: Callable[[Path], Mapping[str, str]],
    ) -> None:
        self._kind = (client, tag, runtime, user, quota)
        self._labels = labels
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._holder: _VolumeContainer | None = None
        self._numbers = itertools.count()
        self._lease = Lease(temporary())
        atexit.register(self.close)

    def take(self) -> Volume:
        """An empty one.

        Raises:
            SandboxError: the container that would hold it does not start.
            docker.errors.DockerException: the engine refuses.
        """
        with self._lock:
            if self._holder is not None and (self._holder.dead or not self._holder.left):
                self._holder.retire()
                self._holder = None
            if self._holder is None:
                self._holder = _VolumeContainer(*self._kind, self._lease.path, self._labels(self._lease.path))
            return self._holder.take()

    def close(self) -> None:
        """Give up what nobody has taken. Idempotent."""
        if os.getpid() != self._pid:  # a fork of ours, which owns nothing of this
            return
        with self._lock:
            if self._holder is not None:
                self._holder.retire()
                self._holder = None
        self._lease.close()


@final
class _VolumeContainer:
    """A container that keeps volumes mounted; it goes when it is retired and none is taken any more."""

    def __init__(
        self,
        client: Any,
        tag: str,
        runtime: str | None,
        user: int,
        quota: Quota,
        folder: Path,
        labels: Mapping[str, str],
    ) -> None:
        from docker.types import DriverConfig, Mount

        self._lock = threading.Lock()
        self._taken, self._retired = 0, False
        bounds = f"size={quota.total_bytes},nr_inodes={quota.files}"
        owned = f"uid={user},gid={user},mode=700,nosuid,nodev"
        options = {"type": "tmpfs", "device": "tmpfs", "o": f"{bounds},{owned}"}
        places = [f"/spaces/{number}" for number in range(_VOLUMES)]

        def mount(target: str, name: str | None) -> Any:
            # Without a copy of what the image has there, which would come with its owner and mode.
            how: Any = DriverConfig("local", options)
            return Mount(target, name, type="volume", no_copy=True, driver_config=how, labels=dict(labels))

        source = resources.files("envkit.sandboxes._docker").joinpath("guest_volumes.py").read_text()
        with listening(folder) as listener:
            self._container: Any = client.containers.create(
                tag,
                [PYTHON, *PYTHON_OPTIONS, "-c", source, f"{CONTROL}/socket", *places],
                runtime=runtime,
                user=f"{user}:{user}",
                hostname="sandbox",
                environment={},
                network_mode="none",
                ipc_mode="none",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges", f"seccomp={seccomp.profile()}"],
                pids_limit=_HOLDER_PROCESSES,
                mem_limit=_HOLDER_BYTES,
                volumes={str(folder): {"bind": CONTROL, "mode": "ro"}},
                mounts=[mount(place, None) for place in places],
                log_config={"type": "none"},
                labels={**labels, HOLDS: str(_VOLUMES)},
            )
            try:
                self._container.start()
                self._socket = accept(listener, self._container)
                self._socket.settimeout(PATIENCE_S)
                _, roots, _, _ = socket.recv_fds(self._socket, 16, _VOLUMES, socket.MSG_CMSG_CLOEXEC)
            except BaseException as error:
                self._remove()
                if isinstance(error, OSError):
                    raise SandboxError(f"a container of {tag} does not hold a workspace: {error}") from error
                raise
        if len(roots) < _VOLUMES:
            self._remove()
            raise SandboxError(f"a container of {tag} passes no descriptors, and its workspace is lost")
        mounted = self._container.attrs["Mounts"]
        names = {found["Destination"]: found["Name"] for found in mounted if "Name" in found}
        self.left = [
            Volume(self, mount(WORKSPACE, names[place]), root)
            for place, root in zip(places, roots, strict=True)
        ]

    @property
    def dead(self) -> bool:
        """Whether it holds nothing any more."""
        return bwrap.readable(self._socket.fileno(), 0)  # it says nothing, so this is the end

    def take(self) -> Volume:
        """One of those that are ``left``."""
        with self._lock:
            self._taken += 1
            return self.left.pop()

    def release(self) -> None:
        """Count one as given up that was taken."""
        with self._lock:
            self._taken -= 1
            self._leave()

    def retire(self) -> None:
        """Give up those that nobody took; called once."""
        with self._lock:
            while self.left:
                os.close(self.left.pop().root)
            self._retired = True
            self._leave()

    def _leave(self) -> None:
        if self._retired and not self._taken:
            self._socket.close()
            self._remove()

    def _remove(self) -> None:
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        with contextlib.suppress(DockerException, RequestException):  # an engine that is away: see `reap`
            self._container.remove(force=True, v=True)


@contextlib.contextmanager
def listening(folder: Path) -> Generator[socket.socket]:
    """A socket in a folder, for one who comes first; afterwards nobody else can."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            # By way of the descriptor, because the path itself may be longer than a socket's may be.
            listener.bind(f"/proc/self/fd/{handle}/socket")
            os.chmod(folder / "socket", 0o666)  # the worker has no right to pass over file modes
            listener.listen(1)
            listener.settimeout(PATIENCE_S)
            yield listener
    finally:
        os.close(handle)
        (folder / "socket").unlink(missing_ok=True)


def accept(listener: socket.socket, container: Any) -> socket.socket:
    """The connection of what runs in a container.

    Raises:
        TimeoutError: it does not come.
        SandboxError: the container has ended.
    """
    deadline = time.monotonic() + PATIENCE_S
    listener.settimeout(1.0)
    while True:
        try:
            return listener.accept()[0]
        except TimeoutError:
            if time.monotonic() > deadline:
                raise
        container.reload()
        if container.status == "exited":
            code = container.attrs["State"]["ExitCode"]
            raise SandboxError(f"a container ended with status {code} before its worker could answer")
