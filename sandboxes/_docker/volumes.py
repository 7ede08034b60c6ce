"""Workspaces for containers: volumes of a fixed size in memory, and containers that keep them mounted.

The engine mounts such a volume for the first container that uses it and unmounts it after the last, which
deletes its files. So a volume container uses it for as long as the sandbox lives. Only trusted code runs
there (`envkit.sandboxes._docker.guest_volumes`), which passes descriptors of the folders to the host. A
volume container holds several volumes, created ahead, so that few sandboxes wait for one. No volume is used
twice.

The files that containers share, of the image, packages and data, lie in volumes in memory too
(`SharedFiles`). On a disk, a container could tell from the page cache which of them others have read.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, final

from envkit.errors import SandboxError
from envkit.runtime.lease import Lease
from envkit.sandbox import PYTHON_OPTIONS, Quota
from envkit.sandboxes._docker.base import Base
from envkit.sandboxes._linux import bwrap, seccomp
from envkit.sandboxes._rootfs.rootfs import WORKSPACE
from envkit.sandboxes._sandbox import temporary

#: Folder in a container that holds the socket to the host.
CONTROL: Final = "/run/envkit"
PATIENCE_S: Final = 30.0
#: For the copy of an image's files, which may be gigabytes on a cold disk.
_COPY_PATIENCE_S: Final = 600.0
#: An image may name a program that the engine would run now and then.
NO_HEALTHCHECK: Final = {"test": ["NONE"]}
#: Label of a volume container: how many volumes it holds.
HOLDS: Final = "envkit.holds"
#: Label of a container that holds the files that others share.
SHARES: Final = "envkit.shares"
_VOLUMES: Final = 8
#: Limits of a volume container. The runtime that starts it has several threads.
_CONTAINER_BYTES, _CONTAINER_PROCESSES = 64 * 2**20, 16
#: Space that a file takes beyond its content, at most, and limit of open files beside those that are shared.
_PAGE_BYTES, _OPEN_FILES = 4096, 64


@final
class Volume:
    """The volume of one workspace. Its owner closes it.

    Args:
        container: the volume container that keeps it mounted.
        mount: the `docker.types.Mount` with which another container uses it.
        root: descriptor of its folder; the owner closes it.
    """

    def __init__(self, container: _VolumeContainer, mount: Any, root: int) -> None:
        self._container, self.mount, self.root = container, mount, root
        self._pid, self._closed = os.getpid(), False

    def close(self) -> None:
        """Release the volume. The last one to be released removes the volume container. Idempotent."""
        if not self._closed and os.getpid() == self._pid:  # a fork of this process does not own it
            self._closed = True
            self._container.release()


@final
class VolumePool:
    """Volumes of one kind, for all sandboxes of this process. Closed when the process exits. Thread-safe.

    Args:
        client: the Docker client.
        base: the image of the containers.
        layers: place in the sandbox and folder of the host, for each folder beside the image that they share.
        runtime: name of the container runtime; ``None`` for the engine's default.
        user: host user that sandboxed code runs as.
        quota: limit of each volume.
        labels: gives the labels for the owner of a lease folder.
    """

    def __init__(
        self,
        client: Any,
        base: Base,
        layers: Sequence[tuple[str, Path]],
        runtime: str | None,
        user: int,
        quota: Quota,
        labels: Callable[[Path], Mapping[str, str]],
    ) -> None:
        self._kind, self._layers = (client, base, runtime, user, quota), layers
        self._labels = labels
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._current: _VolumeContainer | None = None
        self._shared: SharedFiles | None = None
        self._numbers = itertools.count()
        self._lease = Lease(temporary())
        atexit.register(self.close)

    def acquire(self) -> Volume:
        """An empty volume; the caller closes it.

        Raises:
            SandboxError: the volume container does not start.
            docker.errors.DockerException: the engine refuses.
        """
        with self._lock:
            if self._current is not None and (self._current.dead or not self._current.unused):
                self._current.retire()
                self._current = None
            if self._current is None:
                self._current = _VolumeContainer(
                    *self._kind, self._lease.path, self._labels(self._lease.path)
                )
            return self._current.acquire()

    def shared_files(self) -> Sequence[Any]:
        """The `docker.types.Mount`s of the shared files, for every container that runs commands.

        Raises:
            SandboxError: the container that holds them does not start.
            docker.errors.DockerException: the engine refuses.
        """
        with self._lock:
            if self._shared is None or self._shared.dead:
                if self._shared is not None:
                    self._shared.close()
                client, base, runtime, user, _ = self._kind
                self._shared = SharedFiles(
                    client,
                    base,
                    self._layers,
                    runtime,
                    user,
                    self._lease.path,
                    self._labels(self._lease.path),
                )
            return self._shared.mounts

    def close(self) -> None:
        """Release the volumes that no sandbox uses, and the shared files. Idempotent."""
        if os.getpid() != self._pid:  # a fork of this process does not own them
            return
        with self._lock:
            if self._current is not None:
                self._current.retire()
                self._current = None
            if self._shared is not None:
                self._shared.close()
                self._shared = None
        self._lease.close()


@final
class _VolumeContainer:
    """A container that keeps volumes mounted. It is removed once it is retired and none is in use."""

    def __init__(
        self,
        client: Any,
        base: Base,
        runtime: str | None,
        user: int,
        quota: Quota,
        folder: Path,
        labels: Mapping[str, str],
    ) -> None:
        from docker.types import DriverConfig, Mount

        self._lock = threading.Lock()
        self._acquired, self._retired = 0, False
        bounds = f"size={quota.total_bytes},nr_inodes={quota.files}"
        owned = f"uid={user},gid={user},mode=700,nosuid,nodev"
        options = {"type": "tmpfs", "device": "tmpfs", "o": f"{bounds},{owned}"}
        places = [f"/spaces/{number}" for number in range(_VOLUMES)]

        def mount(target: str, name: str | None) -> Any:
            # no_copy: the engine would otherwise copy owner and mode of the image's folder.
            how: Any = DriverConfig("local", options)
            return Mount(target, name, type="volume", no_copy=True, driver_config=how, labels=dict(labels))

        with listening(folder) as listener:
            self._container: Any = _trusted_container(
                client,
                base,
                "guest_volumes.py",
                places,
                runtime=runtime,
                user=f"{user}:{user}",
                mem_limit=_CONTAINER_BYTES,
                volumes={str(folder): {"bind": CONTROL, "mode": "ro"}},
                mounts=[mount(place, None) for place in places],
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
                    raise SandboxError(
                        f"a container of {base.image} cannot mount a workspace: {error}"
                    ) from error
                raise
        if len(roots) < _VOLUMES:
            self._remove()
            raise SandboxError(
                f"a container of {base.image} passes no descriptors, and its workspace is lost"
            )
        mounted = self._container.attrs["Mounts"]
        names = {found["Destination"]: found["Name"] for found in mounted if "Name" in found}
        self.unused = [
            Volume(self, mount(WORKSPACE, names[place]), root)
            for place, root in zip(places, roots, strict=True)
        ]

    @property
    def dead(self) -> bool:
        """True if the container has ended."""
        return bwrap.readable(self._socket.fileno(), 0)  # it sends nothing, so readable means closed

    def acquire(self) -> Volume:
        """One of the ``unused`` volumes."""
        with self._lock:
            self._acquired += 1
            return self.unused.pop()

    def release(self) -> None:
        """Count one acquired volume as released."""
        with self._lock:
            self._acquired -= 1
            self._remove_if_unused()

    def retire(self) -> None:
        """Close the unused volumes. The container is removed with the last one in use. Called once."""
        with self._lock:
            while self.unused:
                os.close(self.unused.pop().root)
            self._retired = True
            self._remove_if_unused()

    def _remove_if_unused(self) -> None:
        if self._retired and not self._acquired:
            self._socket.close()
            self._remove()

    def _remove(self) -> None:
        _remove(self._container)


@final
class SharedFiles:
    """Copies of an image's files and of other folders in memory, and the container that holds their locks.

    Args:
        client, base, layers, runtime, user: see `VolumePool`.
        folder: an existing folder for the socket.
        labels: the container's.

    Raises:
        SandboxError: the container does not start.
        docker.errors.DockerException: the engine refuses.
    """

    def __init__(
        self,
        client: Any,
        base: Base,
        layers: Sequence[tuple[str, Path]],
        runtime: str | None,
        user: int,
        folder: Path,
        labels: Mapping[str, str],
    ) -> None:
        from docker.types import DriverConfig, Mount, Ulimit

        sizes = [_size(layer) for _, layer in layers]
        files = base.files + sum(count for _, count in sizes) + _OPEN_FILES
        # In the image's folders, files take whole pages as well.
        size_bytes = 2 * int(client.images.get(base.image).attrs["Size"]) + sum(size for size, _ in sizes)
        owned = f"size={size_bytes},uid={user},gid={user},mode=755,nosuid,nodev,noatime"
        how: Any = DriverConfig("local", {"type": "tmpfs", "device": "tmpfs", "o": owned})
        brought = {f"/layers/{number}": layer for number, (_, layer) in enumerate(layers)}
        sources = [*base.folders, *brought]
        places = [*base.folders, *(place for place, _ in layers)]
        copies = [f"/shared/{number}" for number in range(len(sources))]
        binds = {str(layer): {"bind": place, "mode": "ro"} for place, layer in brought.items()}
        with listening(folder) as listener:
            self._container: Any = _trusted_container(
                client,
                base,
                "guest_root.py",
                [word for pair in zip(sources, copies, strict=True) for word in pair],
                runtime=runtime,
                user=f"{user}:{user}",
                mem_limit=_CONTAINER_BYTES + size_bytes,
                ulimits=[Ulimit(name="nofile", soft=files, hard=files)],
                volumes={str(folder): {"bind": CONTROL, "mode": "ro"}, **binds},
                mounts=[
                    Mount(copy, None, type="volume", no_copy=True, driver_config=how, labels=dict(labels))
                    for copy in copies
                ],
                labels={**labels, SHARES: " ".join(places)},
            )
            try:
                self._container.start()
                self._socket = accept(listener, self._container, _COPY_PATIENCE_S)
            except BaseException as error:
                _remove(self._container)
                if isinstance(error, OSError):
                    raise SandboxError(
                        f"a container of {base.image} cannot copy its files: {error}"
                    ) from error
                raise
        found = {one["Destination"]: one.get("Name") for one in self._container.attrs["Mounts"]}
        self.mounts: Sequence[Any] = [
            Mount(place, found[copy], type="volume", no_copy=True, read_only=True)
            for place, copy in zip(places, copies, strict=True)
        ]

    @property
    def dead(self) -> bool:
        """True if the container has ended."""
        return bwrap.readable(self._socket.fileno(), 0)  # it sends nothing, so readable means closed

    def close(self) -> None:
        """Remove the container. The files live on while a container uses them."""
        self._socket.close()
        _remove(self._container)


def _size(folder: Path) -> tuple[int, int]:
    """Bytes that a copy of a folder takes, at most, and the number of its files and folders."""
    files = [path for path in folder.rglob("*") if not path.is_symlink()]
    return sum(path.stat().st_size + _PAGE_BYTES for path in (folder, *files)), len(files) + 1


def _trusted_container(
    client: Any, base: Base, program: str, arguments: Sequence[str], **options: Any
) -> Any:
    """Create a container that runs one of envkit's own programs and keeps volumes mounted."""
    source = resources.files("envkit.sandboxes._docker").joinpath(program).read_text()
    return client.containers.create(
        base.image,
        entrypoint=[base.python, *PYTHON_OPTIONS, "-c", source, f"{CONTROL}/socket", *arguments],
        healthcheck=NO_HEALTHCHECK,
        hostname="sandbox",
        environment={},
        network_mode="none",
        ipc_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges", f"seccomp={seccomp.profile()}"],
        pids_limit=_CONTAINER_PROCESSES,
        log_config={"type": "none"},
        **options,
    )


def _remove(container: Any) -> None:
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    with contextlib.suppress(
        DockerException, RequestException
    ):  # if the engine is away, a later `reap` removes it
        container.remove(force=True, v=True)


@contextlib.contextmanager
def listening(folder: Path) -> Generator[socket.socket]:
    """A socket in a folder, which accepts one connection and is then removed."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            # Through the descriptor, because a socket's path must be shorter than this one may be.
            listener.bind(f"/proc/self/fd/{handle}/socket")
            os.chmod(folder / "socket", 0o666)  # the worker lacks the capability to override file modes
            listener.listen(1)
            listener.settimeout(PATIENCE_S)
            yield listener
    finally:
        os.close(handle)
        (folder / "socket").unlink(missing_ok=True)


def accept(listener: socket.socket, container: Any, patience_s: float = PATIENCE_S) -> socket.socket:
    """Accept the connection of the program that runs in a container, within ``patience_s`` seconds.

    Raises:
        TimeoutError: it does not connect.
        SandboxError: the container has ended.
    """
    deadline = time.monotonic() + patience_s
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
