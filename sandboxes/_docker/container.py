"""Containers with a worker that forks commands, which is faster than an ``exec`` by the engine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, cast, final

from envkit.errors import SandboxError, SandboxUnavailable
from envkit.sandbox import PYTHON_OPTIONS, Limits
from envkit.sandboxes._docker.base import Base
from envkit.sandboxes._docker.cleanup import labels
from envkit.sandboxes._docker.engine import docker_errors, known_runtime
from envkit.sandboxes._docker.volumes import CONTROL, NO_HEALTHCHECK, PATIENCE_S, accept, listening
from envkit.sandboxes._linux import procfs, seccomp
from envkit.sandboxes._linux.child import memory_file, pipes
from envkit.sandboxes._rootfs.rootfs import SCRATCH_BYTES, SCRATCH_FILES
from envkit.sandboxes._supervisor import Ending, Tree, Usage

#: Memory and processes of the worker itself.
_WORKER_BYTES, _WORKER_PROCESSES = 24 * 2**20, 1
#: Names in /proc that belong to the process that looks.
_OWN: Final = ("self", "thread-self", "mounts", "net")


@final
class Container:
    """A running container and the socket to its worker.

    Args:
        client: the Docker client.
        base: its image.
        lease: the owner's lease folder.
        folder: a new folder for the socket.
        mounts: of `envkit.sandboxes._docker.volumes`: the workspace and the shared files.
        user: the user that commands run as.
        limits: its ``memory_bytes`` and ``processes`` limit the container.
        runtime: name of the container runtime; ``None`` for the engine's default.
    """

    def __init__(
        self,
        client: Any,
        base: Base,
        lease: Path,
        folder: Path,
        mounts: Sequence[Any],
        user: int,
        limits: Limits,
        runtime: str | None,
    ) -> None:
        folder.mkdir()
        folder.chmod(0o711)  # whatever the umask is: the worker is root without the right to enter any folder
        memory = limits.memory_bytes + _WORKER_BYTES
        worker = resources.files("envkit.sandboxes._docker").joinpath("guest_worker.py").read_text()
        self._socket: socket.socket | None = None
        self.environment = base.environment
        with docker_errors("make a container"), known_runtime(runtime), listening(folder) as listener:
            self._container: Any = _create(
                client,
                base.image,
                [base.python, *PYTHON_OPTIONS, "-c", worker, f"{CONTROL}/socket", str(user)],
                labels(lease),
                runtime=runtime,
                network_mode="none",
                ipc_mode="private",
                read_only=True,
                cap_drop=["ALL"],
                # The worker becomes another user for commands, and kills that user's processes.
                cap_add=["SETUID", "SETGID", "KILL"],
                security_opt=["no-new-privileges", f"seccomp={seccomp.profile()}"],
                pids_limit=limits.processes + _WORKER_PROCESSES,
                mem_limit=memory,
                memswap_limit=memory,
                shm_size=SCRATCH_BYTES,
                tmpfs={"/tmp": f"size={SCRATCH_BYTES},nr_inodes={SCRATCH_FILES},mode=1777,nosuid,nodev"},
                # No System V memory or queues, because they would outlive the command that created them.
                sysctls={"kernel.shmmni": "0", "kernel.msgmni": "0", "fs.mqueue.queues_max": "0"},
                binds={str(folder): {"bind": CONTROL, "mode": "ro"}},
                mounts=[*mounts],
                # Otherwise a flood of output would fill the host's disk with JSON.
                log_config={"type": "none"},
            )
            try:
                self._container.start()
                self._socket = accept(listener, self._container)
            except TimeoutError:
                self.remove()
                raise SandboxError(
                    f"a container of {base.image} did not start within {PATIENCE_S:g} s"
                ) from None
            except BaseException:
                self.remove()
                raise
            self._socket.settimeout(PATIENCE_S)

    def ask(self, word: str, descriptors: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """Send a request to the worker; returns its answer and the descriptors that came with it.

        Raises:
            SandboxError: the worker is gone or does not answer. Later requests fail too.
        """
        if self._socket is None:
            raise SandboxError("the container died earlier")
        try:
            socket.send_fds(self._socket, [word.encode()], descriptors)
            data, passed, _, _ = socket.recv_fds(self._socket, 2**16, 1, socket.MSG_CMSG_CLOEXEC)
        except BaseException as error:
            self._hang_up()  # a late answer would be taken for that to the next request
            if not isinstance(error, OSError):
                raise
            raise SandboxError(f"the container's worker does not answer: {error}") from error
        if not data:
            self._hang_up()
            raise SandboxError("the container died")
        return cast("dict[str, Any]", json.loads(data)), passed

    def ran_out_of_memory(self) -> bool:
        """True if the engine reports that the kernel killed a process of it because memory ran out."""
        try:
            with docker_errors("look at a container"):
                self._container.wait(timeout=PATIENCE_S)  # the engine notices the end with a delay
                self._container.reload()
        except SandboxUnavailable:
            return False
        return bool(self._container.attrs["State"]["OOMKilled"])

    def remove(self) -> None:
        """Kill and remove the container. Idempotent."""
        self._hang_up()
        with contextlib.suppress(SandboxUnavailable), docker_errors("remove a container"):
            self._container.remove(force=True)

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()  # the worker then ends, and the container with it
            self._socket = None


def _create(client: Any, image: str, command: Sequence[str], labels: Mapping[str, str], **host: Any) -> Any:
    """Create a container whose ``/proc`` and ``/sys`` show nothing of the machine.

    Not by ``client.containers``, which knows no masked paths.
    """
    config: Any = client.api.create_host_config(**host)
    config["MaskedPaths"] = _machine_files()
    made = client.api.create_container(
        image,
        entrypoint=[*command],
        healthcheck=NO_HEALTHCHECK,
        user="0:0",
        hostname="sandbox",
        environment={},
        labels=dict(labels),
        host_config=config,
    )
    return client.containers.get(made["Id"])


def _machine_files() -> list[str]:
    """Paths that count what the whole machine does. The engine runs on this machine."""
    names = [name for name in os.listdir("/proc") if not name.isdigit() and name not in _OWN]
    paths = [f"/proc/{name}" for name in names]
    # The worker reads its container's own control group.
    paths += [f"/sys/{name}" for name in os.listdir("/sys") if name != "fs"]
    return paths + [f"/sys/fs/{name}" for name in os.listdir("/sys/fs") if name != "cgroup"]


@final
class DockerTree(Tree):
    """The processes of a container other than its worker."""

    def __init__(
        self, container: Container, argv: Sequence[str], limits: Limits, idle: list[Container]
    ) -> None:
        self._container, self._idle = container, idle
        self._last_usage = Usage(0.0)
        request = {
            "argv": [*argv],
            "env": {**container.environment},
            "rlimits": [*procfs.rlimits(limits).values()],
        }
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            theirs.callback(os.close, job := memory_file(json.dumps(request).encode()))
            kept, given = pipes(ours, theirs)
            _, [pidfd] = container.ask("run", [job, *given])
            ours.pop_all()
        super().__init__(kept, pidfd)

    def usage(self) -> Usage:
        try:
            found, _ = self._container.ask("usage")
        except SandboxError:
            # A command can make the kernel kill the worker instead of itself when memory runs out.
            if not self._container.ran_out_of_memory():
                raise
            self._last_usage = Usage(self._last_usage.cpu_s, out_of_memory=True)
        else:
            self._last_usage = Usage(found["cpu_s"], found["oom"])
        return self._last_usage

    def end(self) -> Ending:
        try:
            found, _ = self._container.ask("end")
        except SandboxError:
            ran_out = self._last_usage.out_of_memory or self._container.ran_out_of_memory()
            self._container.remove()
            if not ran_out:
                raise
            return Ending(-signal.SIGKILL, Usage(self._last_usage.cpu_s, out_of_memory=True))
        if found["clean"]:
            self._idle.append(self._container)
        else:
            self._container.remove()
        code = -signal.SIGKILL if found["code"] is None else int(found["code"])
        return Ending(code, Usage(found["cpu_s"], found["oom"]))
