"""Isolation by Docker: hardened containers, each with a worker that forks commands.

By default the image is imported from the root folder that bubblewrap uses: Python and its standard library,
without a registry. `envkit.sandboxes._docker.images` offers other kinds of image. Commands get their pipes
through a UNIX socket, so starting one takes a fork instead of an ``exec`` by the daemon.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from envkit.errors import MissingExtraError, SandboxError, SandboxUnavailable
from envkit.runtime.lease import Lease
from envkit.sandbox import PYTHON_OPTIONS, Contents, Limits, Lock, Quota, SandboxBackend
from envkit.sandboxes._docker import engine as docker_engine
from envkit.sandboxes._docker import images
from envkit.sandboxes._docker.base import Base
from envkit.sandboxes._docker.cleanup import labels, reap
from envkit.sandboxes._docker.container import Container, DockerTree
from envkit.sandboxes._docker.engine import docker_errors, known_runtime
from envkit.sandboxes._docker.named_image import named
from envkit.sandboxes._docker.volumes import Volume, VolumePool
from envkit.sandboxes._rootfs import layers
from envkit.sandboxes._sandbox import FolderSandbox, require_system_calls, system_errors, temporary
from envkit.sandboxes._supervisor import Tree
from envkit.sandboxes._workspace.files import Workspace

#: Environment variables that set defaults for the backend's arguments.
IMAGE_VARIABLE, RUNTIME_VARIABLE = "ENVKIT_DOCKER_IMAGE", "ENVKIT_DOCKER_RUNTIME"


@final
class DockerBackend(SandboxBackend):
    """Runs code in containers of a Docker engine on this machine.

    Args:
        contents: what its sandboxes hold beside Python.
        image: one of `envkit.sandboxes._docker.images.KINDS`, built on first use; not used if ``contents``
            names an image. Defaults to the variable ``ENVKIT_DOCKER_IMAGE``, or ``host``.
        runtime: name of the container runtime. Defaults to the variable ``ENVKIT_DOCKER_RUNTIME``, or the
            engine's default. It must let a container connect to a socket of the host and pass descriptors
            both ways, as runc and crun do. gVisor's ``runsc`` does not work: registered with
            ``--host-uds=open`` it connects and accepts descriptors, but sends none (its issue 11695). It
            also has neither process descriptors nor counters of CPU time and memory, which limits need.
        quota: limit of each workspace. Files count as memory of the container whose command wrote
            them, until `reset` or `close` removes that container.

    Raises:
        ConfigError: there is no such kind of image.
    """

    name = "docker"
    isolated = True

    def __init__(
        self,
        contents: Contents = Contents(),
        image: str | None = None,
        runtime: str | None = None,
        quota: Quota = Quota(),
    ) -> None:
        self.contents = contents
        self.quota: Quota = quota  # pyright: ignore[reportIncompatibleVariableOverride]
        self.image = image or os.environ.get(IMAGE_VARIABLE) or "host"
        self.runtime = runtime or os.environ.get(RUNTIME_VARIABLE) or None
        images.require_kind(self.image)

    def available(self) -> str | None:
        """See `envkit.sandbox.SandboxBackend.available`; runs Python in a container to find out."""
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
        return (
            None
            if result.ok
            else f"a trivial program in Docker ended: {result.stop} {result.stderr[-300:]!r}"
        )

    @property
    def lock(self) -> Lock:
        """See `envkit.sandbox.SandboxBackend.lock`."""
        pinned = self._base(docker_engine.answering(os.getpid())).pinned if self.contents.image else ""
        return dataclasses.replace(layers.lock(docker_engine.user(), self.contents), image=pinned)

    def with_contents(self, contents: Contents, warm: Sequence[str] = ()) -> DockerBackend:
        """See `envkit.sandbox.SandboxBackend.with_contents`."""
        made = DockerBackend(contents, self.image, self.runtime, self.quota)
        made.warm = (*warm,)
        layers.folders(docker_engine.user(), contents)
        if contents.image:
            made._base(docker_engine.answering(os.getpid()))
        return made

    def create(self) -> FolderSandbox:
        """See `envkit.sandbox.SandboxBackend.create`."""
        require_system_calls()
        with system_errors("make a sandbox"):
            client, user = docker_engine.answering(os.getpid()), docker_engine.user()
            _reap_once(os.getpid())
            base = self._base(client)
            added = tuple(layers.folders(user, self.contents).items())
            with _MAKING:  # the cache alone would let two threads make one each
                pool = _pool(client, base, added, self.runtime, user, self.quota)
            with docker_errors("make a workspace"), known_runtime(self.runtime):
                pool.shared_files()  # made now, because it takes a moment
                volume = pool.acquire()
            return _DockerSandbox(self, client, base, user, self.runtime, pool, volume, self.quota)

    def _base(self, client: Any) -> Base:
        if self.contents.image:
            return named(client, self.contents.image, docker_engine.user(), self.runtime)
        with docker_errors("make an image"):
            return Base(images.get(client, self.image, docker_engine.user()).tag)


@final
class _DockerSandbox(FolderSandbox):
    """A sandbox with a volume as workspace and one container per command that runs at the same time."""

    def __init__(
        self,
        backend: DockerBackend,
        client: Any,
        base: Base,
        user: int,
        runtime: str | None,
        pool: VolumePool,
        volume: Volume,
        quota: Quota,
    ) -> None:
        super().__init__(Workspace(volume.root, user if user != os.geteuid() else None, quota))
        self._backend, self._pool = backend, pool
        self._volume, self._device = volume, os.fstat(volume.root).st_dev
        self._lease = Lease(temporary())
        self._client, self._base, self._user, self._runtime = client, base, user, runtime
        #: Idle containers, by their limits on memory and processes.
        self._idle: dict[tuple[int, int], list[Container]] = {}
        self._made: list[Container] = []
        self._numbers = itertools.count()

    @property
    def python(self) -> str:
        """See `envkit.sandbox.Sandbox.python`; the same version as the host's, or the image's own."""
        return self._base.python

    def reset(self, snapshot: str | None = None) -> None:
        """See `envkit.sandbox.Sandbox.reset`; also removes the containers and their kernel objects."""
        super().reset(snapshot)
        self._remove_containers()

    def close(self) -> None:
        """See `envkit.sandbox.Sandbox.close`."""
        try:
            self._kill()
            self._remove_containers()
        finally:
            super().close()

    def _new(self) -> FolderSandbox:
        return self._backend.create()

    def _remove_workspace(self) -> None:
        self._volume.close()
        self._lease.close()

    def _remove_containers(self) -> None:
        self._idle.clear()
        while self._made:
            self._made.pop().remove()

    def _start(self, argv: Sequence[str], limits: Limits) -> Tree:
        idle = self._idle.setdefault((limits.memory_bytes, limits.processes), [])
        container = idle.pop() if idle else self._make(limits)
        return DockerTree(container, argv, limits, idle)

    def _make(self, limits: Limits) -> Container:
        folder = self._lease.path / f"control-{next(self._numbers)}"
        with docker_errors("share files"), known_runtime(self._runtime):
            mounts = (*self._pool.shared_files(), self._volume.mount)
        container = Container(
            self._client, self._base, self._lease.path, folder, mounts, self._user, limits, self._runtime
        )
        self._made.append(container)
        found, _ = container.ask("where")
        if found["device"] != self._device:  # the engine has mounted the volume again, empty
            raise SandboxError("the container that held the workspace died, and the files are lost")
        return container


_MAKING = threading.Lock()


@functools.cache
def _pool(
    client: Any,
    base: Base,
    added: tuple[tuple[str, Path], ...],
    runtime: str | None,
    user: int,
    quota: Quota,
) -> VolumePool:
    """This process's pool; its client is never shared with a fork."""
    return VolumePool(client, base, added, runtime, user, quota, labels)


@functools.cache
def _reap_once(pid: int) -> None:
    reap()


def build(
    kinds: Sequence[str], *, base: str | None = None, force: bool = False
) -> tuple[images.Image, dict[str, str]]:
    """Build an image ahead of time: the first of these kinds that can be built and runs Python.

    Args:
        kinds: of `envkit.sandboxes._docker.images.KINDS`.
        base: see `envkit.sandboxes._docker.images.get`.
        force: build it even if it exists.

    Returns:
        The image, and the reason for each kind that was skipped, by kind.

    Raises:
        ConfigError: there is no such kind, or ``base`` is given for another kind than ``dockerfile``.
        SandboxUnavailable: none can be built, or Docker cannot be reached.
    """
    client = docker_engine.answering(os.getpid())
    passed_over: dict[str, str] = {}
    for kind in kinds:
        try:
            with docker_errors("make an image"):
                made = images.get(client, kind, docker_engine.user(), base=base, force=force)
        except SandboxUnavailable as error:
            passed_over[kind] = str(error)
            continue
        if (problem := DockerBackend(image=kind).available()) is None:
            return made, passed_over
        passed_over[kind] = f"{made.tag} does not work: {problem}"
    raise SandboxUnavailable("; ".join(f"no image from {kind}: {why}" for kind, why in passed_over.items()))


def reap_images() -> list[str]:
    """Remove outdated images; see `envkit.sandboxes._docker.images.reap`.

    Raises:
        SandboxUnavailable: Docker cannot be reached.
    """
    client = docker_engine.client(os.getpid())
    with docker_errors("look through images"):
        return images.reap(client, docker_engine.user())
