"""The connection to this machine's Docker engine: one client per process, and its errors as envkit's."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Final, cast, final

from envkit.errors import MissingExtraError, SandboxUnavailable
from envkit.sandboxes._docker.volumes import PATIENCE_S
from envkit.sandboxes._rootfs.rootfs import NOBODY

_LOG: Final = logging.getLogger("envkit.sandboxes.docker")


def user() -> int:
    """The user that sandboxed code runs as."""
    return os.geteuid() or NOBODY


_CONNECTING: Final = threading.Lock()


def client(pid: int) -> Any:
    """This process's client. Keyed by pid, because a connection cannot be shared with a fork.

    Raises:
        MissingExtraError: Docker's Python library is not installed.
        SandboxUnavailable: Docker cannot be reached.
    """
    with _CONNECTING:  # the cache alone would let two threads connect
        return _connected(pid)


@functools.cache
def _connected(pid: int) -> Any:
    try:
        import docker
    except ImportError as error:
        raise MissingExtraError("docker", "docker") from error
    with docker_errors("reach Docker"):
        connected: Any = cast("Any", docker).from_env(timeout=int(PATIENCE_S))
        try:
            connected.ping()
        except BaseException:
            connected.close()
            raise
    if str(connected.api.base_url) != "http+docker://localhost":  # the library's name for a UNIX socket
        raise SandboxUnavailable("Docker runs on another machine; unset DOCKER_HOST to use one here")
    return connected


def _try_socket() -> None:
    """Connect to the engine's UNIX socket once, because the library leaks its own socket if that fails."""
    from docker.errors import DockerException

    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    path = host.removeprefix("unix://")
    if path != host:
        with socket.socket(socket.AF_UNIX) as attempt:
            try:
                attempt.settimeout(PATIENCE_S)
                attempt.connect(path)
            except OSError as error:
                raise DockerException(f"{path}: {error.strerror or error}") from error


@final
class Reconnect:
    """Waits for an engine that restarts: up to a total of ``patience_s`` until it answers again.

    The first wait is announced as a warning. Once the patience is used up, calls fail at once instead of
    waiting again, so a run stops soon if the engine is gone for good.

    Args:
        patience_s: seconds to wait in total, over all calls in a row that fail.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._lost_at: float | None = None

    def wait(self, ping: Callable[[], object]) -> None:
        """Call ``ping`` until it succeeds.

        Raises:
            SandboxUnavailable: the patience is used up.
        """
        while True:
            try:
                with docker_errors("reach Docker"):
                    ping()
            except SandboxUnavailable:
                now = time.monotonic()
                if self._lost_at is None:
                    self._lost_at = now
                    _LOG.warning(
                        "Docker does not answer; trying for %g s to reach it again", self._patience_s
                    )
                if now - self._lost_at >= self._patience_s:
                    raise
                time.sleep(0.1)
            else:
                if self._lost_at is not None:
                    _LOG.warning("Docker answers again")
                self._lost_at = None
                return


@functools.cache
def _reconnect(pid: int) -> Reconnect:
    return Reconnect(PATIENCE_S)


def answering(pid: int) -> Any:
    """This process's client, once the engine answers. A restarting engine is away for a few seconds.

    Raises:
        SandboxUnavailable: it does not come back, or was never running.
    """
    found = client(pid)
    _reconnect(pid).wait(found.ping)
    return found


@contextlib.contextmanager
def docker_errors(doing: str) -> Generator[None]:
    """Turn errors of Docker's library and of the connection into envkit's.

    Raises:
        SandboxUnavailable: says what could not be done, and why.
    """
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    try:
        _try_socket()
        yield
    except (DockerException, RequestException) as error:
        if isinstance(error, APIError):  # of the engine itself, so it runs and is reached
            raise SandboxUnavailable(f"cannot {doing}: {error}") from error
        raise SandboxUnavailable(
            f"cannot {doing}: {error}; is dockerd running, and is this user in the group docker?"
        ) from error


@contextlib.contextmanager
def known_runtime(runtime: str | None) -> Generator[None]:
    """Turn the engine's refusal of an unknown runtime into an error that says how to register it.

    Raises:
        SandboxUnavailable: the engine does not know ``runtime``.
    """
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
