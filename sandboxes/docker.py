"""Isolation by Docker: hardened containers, and in each a worker that starts commands without an ``exec``.

The image is the very root folder that bubblewrap uses, imported: one Python interpreter and its standard
library, no registry asked. Commands get their pipes through a UNIX socket, so that starting one costs a fork
instead of an ``exec`` by the daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import json
import os
import platform
import signal
import socket
import tarfile
import time
from collections.abc import Generator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, cast, final

from envkit.errors import MissingExtraError, SandboxError, SandboxUnavailable
from envkit.sandbox import PYTHON_OPTIONS, Limits, Sandbox, SandboxBackend
from envkit.sandboxes import _proc, _seccomp
from envkit.sandboxes._child import memory, pipes
from envkit.sandboxes._image import ENVIRONMENT, NOBODY, PYTHON, SCRATCH_BYTES, WORKSPACE, image
from envkit.sandboxes._sandbox import FolderSandbox
from envkit.sandboxes._supervise import Ending, Tree, Usage
from envkit.sandboxes._temporary import Lease

_REPOSITORY = "envkit-sandbox"
#: Labels of our containers: the lease folder of the process that owns one, and the host it lives on.
_LEASE, _HOST = "envkit.lease", "envkit.host"
_CONTROL: Final = "/run/envkit"
_PATIENCE_S = 30.0
#: Memory and processes of the worker itself.
_WORKER_BYTES, _WORKER_PROCESSES = 24 * 2**20, 1


@final
class DockerBackend(SandboxBackend):
    """Runs code in containers of a Docker engine on this machine.

    Args:
        packages: see `envkit.sandbox.SandboxBackend.packages`; pure Python ones that are installed here.
    """

    name = "docker"
    isolated = True

    def __init__(self, packages: Sequence[str] = ()) -> None:
        self.packages = tuple(packages)

    def available(self) -> str | None:
        """See `envkit.sandbox.SandboxBackend.available`; really runs Python in a container."""
        try:
            with self.create() as sandbox:
                result = sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", "pass"])
        except (SandboxError, MissingExtraError) as error:
            return str(error)
        return None if result.ok else f"a trivial program in Docker ended by {result.stop}"

    def create(self) -> Sandbox:
        """See `envkit.sandbox.SandboxBackend.create`."""
        user = os.geteuid() or NOBODY
        client = _answering(os.getpid())
        _reap_once(os.getpid())
        return _DockerSandbox(client, _imported(client, image(user, self.packages)), user)


@final
class _DockerSandbox(FolderSandbox):
    """A workspace on the host, bound into a container for every tree that runs at once."""

    def __init__(self, client: Any, tag: str, user: int) -> None:
        super().__init__(user if user != os.geteuid() else None)
        self._client, self._tag, self._user = client, tag, user
        #: Containers that run nothing, by the limits that they were made with.
        self._idle: dict[tuple[int, int], list[_Container]] = {}
        self._made: list[_Container] = []
        self._numbers = itertools.count()

    @property
    def python(self) -> str:
        """See `envkit.sandbox.Sandbox.python`; the host's own version."""
        return PYTHON

    def reset(self, snapshot: str | None = None) -> None:
        """See `envkit.sandbox.Sandbox.reset`; the containers go too, with all that their kernel keeps."""
        super().reset(snapshot)
        self._remove_containers()

    def close(self) -> None:
        """See `envkit.sandbox.Sandbox.close`."""
        try:
            self._kill()
            self._remove_containers()
        finally:
            super().close()

    def _remove_containers(self) -> None:
        self._idle.clear()
        while self._made:
            self._made.pop().remove()

    def _start(self, argv: Sequence[str], limits: Limits) -> Tree:
        idle = self._idle.setdefault((limits.memory_bytes, limits.processes), [])
        container = idle.pop() if idle else self._make(limits)
        return _DockerTree(container, argv, limits, idle)

    def _make(self, limits: Limits) -> _Container:
        folder = self._lease.path / f"control-{next(self._numbers)}"
        container = _Container(self._client, self._tag, self._lease.path, folder, self._user, limits)
        self._made.append(container)
        return container


@final
class _Container:
    """A running container and the socket to its worker.

    Args:
        client: the Docker client.
        tag: the image.
        lease: the owner's lease folder, in which ``work`` is the workspace.
        folder: a new folder for the socket.
        user: who commands run as.
        limits: ``memory_bytes`` and ``processes`` bound the container.
    """

    def __init__(self, client: Any, tag: str, lease: Path, folder: Path, user: int, limits: Limits) -> None:
        folder.mkdir(mode=0o711)
        memory = limits.memory_bytes + _WORKER_BYTES
        worker = resources.files("envkit.sandboxes").joinpath("_worker.py").read_text()
        self._socket: socket.socket | None = None
        with _docker_errors("make a container"), _listening(folder) as listener:
            self._container: Any = client.containers.create(
                tag,
                [PYTHON, *PYTHON_OPTIONS, "-c", worker, f"{_CONTROL}/socket", str(user)],
                user="0:0",
                hostname="sandbox",
                environment={},
                network_mode="none",
                ipc_mode="private",
                read_only=True,
                cap_drop=["ALL"],
                # To become another user, and to kill what runs as it.
                cap_add=["SETUID", "SETGID", "KILL"],
                security_opt=["no-new-privileges", f"seccomp={_seccomp.profile()}"],
                pids_limit=limits.processes + _WORKER_PROCESSES,
                mem_limit=memory,
                memswap_limit=memory,
                shm_size=SCRATCH_BYTES,
                tmpfs={"/tmp": f"size={SCRATCH_BYTES},mode=1777,nosuid,nodev"},
                # What the kernel keeps for a container would outlive the command that put it there.
                sysctls={"kernel.shmmni": "0", "kernel.msgmni": "0", "fs.mqueue.queues_max": "0"},
                volumes={
                    str(lease / "work"): {"bind": WORKSPACE, "mode": "rw"},
                    str(folder): {"bind": _CONTROL, "mode": "ro"},
                },
                # A flood would otherwise fill the host's disk with JSON.
                log_config={"type": "none"},
                labels={_LEASE: str(lease), _HOST: platform.node()},
            )
            try:
                self._container.start()
                self._socket, _ = listener.accept()
            except TimeoutError:
                self.remove()
                raise SandboxError(f"a container of {tag} did not start within {_PATIENCE_S:g} s") from None
            except BaseException:
                self.remove()
                raise
            self._socket.settimeout(_PATIENCE_S)

    def ask(self, word: str, descriptors: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """Send a request to the worker; returns its answer and the descriptors that came with it.

        Raises:
            SandboxError: the worker is gone, or silent; it is asked nothing more.
        """
        if self._socket is None:
            raise SandboxError("the container died earlier")
        try:
            socket.send_fds(self._socket, [word.encode()], descriptors)
            data, passed, _, _ = socket.recv_fds(self._socket, 2**16, 1, socket.MSG_CMSG_CLOEXEC)
        except BaseException as error:
            self._hang_up()  # a late answer would be taken for that to the next question
            if not isinstance(error, OSError):
                raise
            raise SandboxError(f"the container's worker does not answer: {error}") from error
        if not data:
            self._hang_up()
            raise SandboxError("the container died")
        return cast("dict[str, Any]", json.loads(data)), passed

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel killed something in it for memory, as the engine saw it."""
        try:
            with _docker_errors("look at a container"):
                self._container.wait(timeout=_PATIENCE_S)  # the engine learns of its end a moment later
                self._container.reload()
        except SandboxUnavailable:
            return False
        return bool(self._container.attrs["State"]["OOMKilled"])

    def remove(self) -> None:
        """Kill it, whatever it does, and return when it is gone. Idempotent."""
        self._hang_up()
        with contextlib.suppress(SandboxUnavailable), _docker_errors("remove a container"):
            self._container.remove(force=True)

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()  # upon which the worker ends, and the container with it
            self._socket = None


@contextlib.contextmanager
def _listening(folder: Path) -> Generator[socket.socket]:
    """A socket in a folder, for one who comes first; afterwards nobody else can."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            # By way of the descriptor, because the path itself may be longer than a socket's may be.
            listener.bind(f"/proc/self/fd/{handle}/socket")
            os.chmod(folder / "socket", 0o666)  # the worker has no right to pass over file modes
            listener.listen(1)
            listener.settimeout(_PATIENCE_S)
            yield listener
    finally:
        os.close(handle)
        (folder / "socket").unlink(missing_ok=True)


@final
class _DockerTree(Tree):
    """What runs in a container beside its worker."""

    def __init__(
        self, container: _Container, argv: Sequence[str], limits: Limits, idle: list[_Container]
    ) -> None:
        self._container, self._idle = container, idle
        self._seen = Usage(0.0)
        request = {"argv": [*argv], "env": ENVIRONMENT, "rlimits": [*_proc.rlimits(limits).values()]}
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            theirs.callback(os.close, job := memory(json.dumps(request).encode()))
            kept, given = pipes(ours, theirs)
            _, [pidfd] = container.ask("run", [job, *given])
            ours.pop_all()
        super().__init__(kept, pidfd)

    def usage(self) -> Usage:
        try:
            found, _ = self._container.ask("usage")
        except SandboxError:
            # Process 1 dies of hunger too, where a command has taken care not to die first.
            if not self._container.ran_out_of_memory():
                raise
            self._seen = Usage(self._seen.cpu_s, out_of_memory=True)
        else:
            self._seen = Usage(found["cpu_s"], found["oom"])
        return self._seen

    def end(self) -> Ending:
        try:
            found, _ = self._container.ask("end")
        except SandboxError:
            hungry = self._seen.out_of_memory or self._container.ran_out_of_memory()
            self._container.remove()
            if not hungry:
                raise
            return Ending(-signal.SIGKILL, Usage(self._seen.cpu_s, out_of_memory=True))
        if found["clean"]:
            self._idle.append(self._container)
        else:
            self._container.remove()
        code = -signal.SIGKILL if found["code"] is None else int(found["code"])
        return Ending(code, Usage(found["cpu_s"], found["oom"]))


@functools.cache
def _client(pid: int) -> Any:
    """This process's client; keyed by pid, since a connection cannot be shared with a fork."""
    try:
        import docker
    except ImportError as error:
        raise MissingExtraError("docker", "docker") from error
    with _docker_errors("reach Docker"):
        client: Any = cast("Any", docker).from_env(timeout=int(_PATIENCE_S))
        try:
            client.ping()
        except BaseException:
            client.close()
            raise
    if str(client.api.base_url) != "http+docker://localhost":  # how it names a UNIX socket
        raise SandboxUnavailable("Docker runs on another machine; unset DOCKER_HOST to use one here")
    return client


def _knock() -> None:
    """Try the engine's UNIX socket; where nobody answers, the library would leave one of its own open."""
    from docker.errors import DockerException

    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    path = host.removeprefix("unix://")
    if path != host:
        with socket.socket(socket.AF_UNIX) as knocking:
            try:
                knocking.settimeout(_PATIENCE_S)
                knocking.connect(path)
            except OSError as error:
                raise DockerException(f"{path}: {error.strerror or error}") from error


def _answering(pid: int) -> Any:
    """This process's client, once the engine answers: one that restarts is away for a few seconds.

    Raises:
        SandboxUnavailable: it does not come back, or was never there.
    """
    client = _client(pid)
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with _docker_errors("reach Docker"):
                client.ping()
            return client
        except SandboxUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def _docker_errors(doing: str) -> Generator[None]:
    """What Docker or the way to it raises, as ours."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        _knock()
        yield
    except (DockerException, RequestException) as error:
        raise SandboxUnavailable(
            f"cannot {doing}: {error}; is dockerd running, and is this user in the group docker?"
        ) from error


def _imported(client: Any, root: Path) -> str:
    """The image of a root folder, imported on first use; returns its tag."""
    from docker.errors import ImageNotFound

    tag = f"{_REPOSITORY}:{root.name}"
    with _docker_errors(f"import the image {tag}"):
        try:
            client.images.get(tag)
        except ImageNotFound:
            try:
                with contextlib.closing(Lease(root.parent)) as lease:
                    archive = lease.path / "image.tar"
                    with tarfile.open(archive, "w") as file:
                        file.add(root, ".", filter=_as_root)
                    client.api.import_image_from_file(str(archive), repository=_REPOSITORY, tag=root.name)
            except OSError as error:
                raise SandboxUnavailable(f"cannot make the image {tag} in {root.parent}: {error}") from error
    return tag


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


@functools.cache
def _reap_once(pid: int) -> None:
    reap()


def reap() -> list[str]:
    """Remove the containers on this host whose owner is dead; returns their names.

    Raises:
        SandboxUnavailable: Docker cannot be reached.
    """
    names: list[str] = []
    with _docker_errors("list containers"):
        ours = {"label": f"{_HOST}={platform.node()}"}
        for container in _client(os.getpid()).containers.list(all=True, filters=ours, ignore_removed=True):
            if not _is_held(container.labels[_LEASE]):
                with contextlib.suppress(SandboxUnavailable), _docker_errors("remove a container"):
                    container.remove(force=True)  # unless someone else was quicker
                    names.append(container.name)
    return names


def _is_held(lease: str) -> bool:
    try:
        folder = os.open(lease, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # another user's
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(folder)
    return False
