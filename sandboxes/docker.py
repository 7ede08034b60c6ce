"""Isolation by Docker: hardened containers, and in each a worker that starts commands without an ``exec``.

The image is the very root folder that bubblewrap uses, imported: one Python interpreter and its standard
library, no registry asked; `envkit.sandboxes._images` has others. Commands get their pipes through a UNIX
socket, so that starting one costs a fork instead of an ``exec`` by the daemon.
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
import time
from collections.abc import Generator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast, final

from envkit.errors import MissingExtraError, SandboxError, SandboxUnavailable
from envkit.sandbox import PYTHON_OPTIONS, Limits, SandboxBackend, Space
from envkit.sandboxes import _images, _proc, _seccomp
from envkit.sandboxes._child import memory, pipes
from envkit.sandboxes._image import ENVIRONMENT, NOBODY, PYTHON, SCRATCH_BYTES, SCRATCH_FILES
from envkit.sandboxes._sandbox import FolderSandbox, temporary
from envkit.sandboxes._supervise import Ending, Tree, Usage
from envkit.sandboxes._temporary import Lease
from envkit.sandboxes._volumes import CONTROL, PATIENCE_S, Shelf, Volume, accept, listening
from envkit.sandboxes._workspace import Workspace

#: What holds where an argument of the backend does not say.
IMAGE_VARIABLE, RUNTIME_VARIABLE = "ENVKIT_DOCKER_IMAGE", "ENVKIT_DOCKER_RUNTIME"
#: Labels of our containers: the lease folder of the process that owns one, and the host it lives on.
_LEASE, _HOST = "envkit.lease", "envkit.host"
#: Memory and processes of the worker itself.
_WORKER_BYTES, _WORKER_PROCESSES = 24 * 2**20, 1


@final
class DockerBackend(SandboxBackend):
    """Runs code in containers of a Docker engine on this machine.

    Args:
        packages: see `envkit.sandbox.SandboxBackend.packages`; pure Python ones that are installed here.
        image: a kind of `envkit.sandboxes._images.KINDS`, made on first use; by default what the variable
            ``ENVKIT_DOCKER_IMAGE`` says, or ``host``.
        runtime: the engine's name of the runtime that runs containers; by default what the variable
            ``ENVKIT_DOCKER_RUNTIME`` says, or the engine's own choice. It must let a container connect to
            a socket of the host, and pass descriptors both ways, as runc and crun do. gVisor's ``runsc``
            connects if registered with ``--host-uds=open``, and takes descriptors, but hands none out (its
            issue 11695), and shows inside neither a process's end by descriptor nor any count of CPU time
            or memory by which limits could be held: no command starts in it.
        space: what each workspace may hold. Files count as memory of the container whose command wrote
            them, for as long as that container is used: until `reset`, or the end.

    Raises:
        ConfigError: no such kind of image.
    """

    name = "docker"
    isolated = True

    def __init__(
        self,
        packages: Sequence[str] = (),
        image: str | None = None,
        runtime: str | None = None,
        space: Space = Space(),
    ) -> None:
        self.packages, self.space = tuple(packages), space
        self._space = space
        self.image = image or os.environ.get(IMAGE_VARIABLE) or "host"
        self.runtime = runtime or os.environ.get(RUNTIME_VARIABLE) or None
        _images.require_kind(self.image)

    def available(self) -> str | None:
        """See `envkit.sandbox.SandboxBackend.available`; really runs Python in a container."""
        try:
            with self.create() as sandbox:
                result = sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", "pass"])
        except (SandboxUnavailable, MissingExtraError) as error:
            return str(error)
        except SandboxError as error:
            if self.runtime is None:
                return str(error)
            return (
                f"{error}; perhaps the runtime {self.runtime!r} does not let a container connect to a socket "
                "of the host and pass descriptors through it, as runc and crun do"
            )
        return None if result.ok else f"a trivial program in Docker ended by {result.stop}"

    def create(self) -> FolderSandbox:
        """See `envkit.sandbox.SandboxBackend.create`."""
        client = _answering(os.getpid())
        _reap_once(os.getpid())
        with _docker_errors("make an image"):
            made = _images.get(client, self.image, _user(), self.packages)
        shelf = _shelf(client, made.tag, self.runtime, _user(), self._space)
        with _docker_errors("hold a workspace"), _known(self.runtime):
            volume = shelf.take()
        return _DockerSandbox(self, client, made.tag, _user(), self.runtime, volume, self._space)


@final
class _DockerSandbox(FolderSandbox):
    """A volume as workspace, in a container for every tree that runs at once."""

    def __init__(
        self,
        backend: DockerBackend,
        client: Any,
        tag: str,
        user: int,
        runtime: str | None,
        volume: Volume,
        space: Space,
    ) -> None:
        super().__init__(Workspace(volume.root, user if user != os.geteuid() else None, space))
        self._backend = backend
        self._volume, self._device = volume, os.fstat(volume.root).st_dev
        self._lease = Lease(temporary())
        self._client, self._tag, self._user, self._runtime = client, tag, user, runtime
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

    def _another(self) -> FolderSandbox:
        return self._backend.create()

    def _vacate(self) -> None:
        self._volume.close()
        self._lease.close()

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
        mount = self._volume.mount
        container = _Container(
            self._client, self._tag, self._lease.path, folder, mount, self._user, limits, self._runtime
        )
        self._made.append(container)
        found, _ = container.ask("where")
        if found["device"] != self._device:  # the engine has mounted it anew
            raise SandboxError("the container that held the workspace died, and the files are lost")
        return container


@final
class _Container:
    """A running container and the socket to its worker.

    Args:
        client: the Docker client.
        tag: the image.
        lease: the owner's lease folder.
        folder: a new folder for the socket.
        workspace: how it gets that; see `envkit.sandboxes._volumes.Volume`.
        user: who commands run as.
        limits: ``memory_bytes`` and ``processes`` bound the container.
        runtime: what runs it, if not the engine's own choice.
    """

    def __init__(
        self,
        client: Any,
        tag: str,
        lease: Path,
        folder: Path,
        workspace: Any,
        user: int,
        limits: Limits,
        runtime: str | None,
    ) -> None:
        folder.mkdir(mode=0o711)
        memory = limits.memory_bytes + _WORKER_BYTES
        worker = resources.files("envkit.sandboxes").joinpath("_worker.py").read_text()
        self._socket: socket.socket | None = None
        with _docker_errors("make a container"), _known(runtime), listening(folder) as listener:
            self._container: Any = client.containers.create(
                tag,
                [PYTHON, *PYTHON_OPTIONS, "-c", worker, f"{CONTROL}/socket", str(user)],
                runtime=runtime,
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
                tmpfs={"/tmp": f"size={SCRATCH_BYTES},nr_inodes={SCRATCH_FILES},mode=1777,nosuid,nodev"},
                # What the kernel keeps for a container would outlive the command that put it there.
                sysctls={"kernel.shmmni": "0", "kernel.msgmni": "0", "fs.mqueue.queues_max": "0"},
                volumes={str(folder): {"bind": CONTROL, "mode": "ro"}},
                mounts=[workspace],
                # A flood would otherwise fill the host's disk with JSON.
                log_config={"type": "none"},
                labels=_labels(lease),
            )
            try:
                self._container.start()
                self._socket = accept(listener, self._container)
            except TimeoutError:
                self.remove()
                raise SandboxError(f"a container of {tag} did not start within {PATIENCE_S:g} s") from None
            except BaseException:
                self.remove()
                raise
            self._socket.settimeout(PATIENCE_S)

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
                self._container.wait(timeout=PATIENCE_S)  # the engine learns of its end a moment later
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


def _labels(lease: Path) -> dict[str, str]:
    """Those of what belongs to the owner of a lease folder."""
    return {_LEASE: str(lease), _HOST: platform.node()}


@functools.cache
def _shelf(client: Any, tag: str, runtime: str | None, user: int, space: Space) -> Shelf:
    """This process's, for its client is its own."""
    return Shelf(client, tag, runtime, user, space, _labels)


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
        client: Any = cast("Any", docker).from_env(timeout=int(PATIENCE_S))
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
                knocking.settimeout(PATIENCE_S)
                knocking.connect(path)
            except OSError as error:
                raise DockerException(f"{path}: {error.strerror or error}") from error


def _answering(pid: int) -> Any:
    """This process's client, once the engine answers: one that restarts is away for a few seconds.

    Raises:
        SandboxUnavailable: it does not come back, or was never there.
    """
    client = _client(pid)
    deadline = time.monotonic() + PATIENCE_S
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


@contextlib.contextmanager
def _known(runtime: str | None) -> Generator[None]:
    """What the engine says to a runtime that it does not know, as ours."""
    from docker.errors import APIError

    try:
        yield
    except APIError as error:
        if runtime is None or "runtime name" not in str(error.explanation):
            raise
        remedy = (
            "install it (https://gvisor.dev/docs/user_guide/install/), then: "
            "sudo runsc install -- --host-uds=open && sudo systemctl reload docker"
            if runtime == "runsc"
            else 'register it under "runtimes" in /etc/docker/daemon.json and reload dockerd'
        )
        raise SandboxUnavailable(f"Docker knows no runtime {runtime!r}; {remedy}") from error


def build(
    kinds: Sequence[str], *, base: str | None = None, force: bool = False
) -> tuple[_images.Image, dict[str, str]]:
    """Make an image ahead of need: the first of these kinds that can be made and runs Python.

    Args:
        kinds: of `envkit.sandboxes._images.KINDS`.
        base: see `envkit.sandboxes._images.get`.
        force: make it anew.

    Returns:
        The image, and of each kind that was passed over the reason.

    Raises:
        ConfigError: no such kind, or a base for another kind than ``dockerfile``.
        SandboxUnavailable: none can be made, or Docker cannot be reached.
    """
    client = _answering(os.getpid())
    passed_over: dict[str, str] = {}
    for kind in kinds:
        try:
            with _docker_errors("make an image"):
                made = _images.get(client, kind, _user(), base=base, force=force)
        except SandboxUnavailable as error:
            passed_over[kind] = str(error)
            continue
        if (problem := DockerBackend(image=kind).available()) is None:
            return made, passed_over
        passed_over[kind] = f"{made.tag} is of no use: {problem}"
    raise SandboxUnavailable("; ".join(f"no image from {kind}: {why}" for kind, why in passed_over.items()))


def reap_images() -> list[str]:
    """Remove images that nothing uses any more; see `envkit.sandboxes._images.reap`.

    Raises:
        SandboxUnavailable: Docker cannot be reached.
    """
    client = _client(os.getpid())
    with _docker_errors("look through images"):
        return _images.reap(client, _user())


def _user() -> int:
    """Who sandboxed code runs as."""
    return os.geteuid() or NOBODY


@functools.cache
def _reap_once(pid: int) -> None:
    reap()


def reap() -> list[str]:
    """Remove the containers and volumes on this host whose owner is dead; returns the containers' names.

    Raises:
        SandboxUnavailable: Docker cannot be reached.
    """
    names: list[str] = []
    client = _client(os.getpid())
    with _docker_errors("list containers"):
        ours = {"label": f"{_HOST}={platform.node()}"}
        found = client.containers.list(all=True, filters=ours, ignore_removed=True)
        # Newest first: what holds a volume is older than those that have it, and goes after them.
        for container in sorted(found, key=lambda one: one.attrs["Created"], reverse=True):
            if not _is_held(container.labels[_LEASE]):
                with contextlib.suppress(SandboxUnavailable), _docker_errors("remove a container"):
                    container.remove(force=True, v=True)  # unless someone else was quicker
                    names.append(container.name)
        # Of a container that somebody else has removed.
        for volume in client.volumes.list(filters={**ours, "dangling": True}):
            if not _is_held(volume.attrs["Labels"][_LEASE]):
                with contextlib.suppress(SandboxUnavailable), _docker_errors("remove a volume"):
                    volume.remove()
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
