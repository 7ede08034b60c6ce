"""The way to the Docker engine of this machine: one client for each process, and what it raises as ours."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Generator
from typing import Any, cast

from envkit.errors import MissingExtraError, SandboxUnavailable
from envkit.sandboxes._docker.volumes import PATIENCE_S
from envkit.sandboxes._rootfs.rootfs import NOBODY


def user() -> int:
    """Who sandboxed code runs as."""
    return os.geteuid() or NOBODY


@functools.cache
def client(pid: int) -> Any:
    """This process's client; keyed by pid, since a connection cannot be shared with a fork."""
    try:
        import docker
    except ImportError as error:
        raise MissingExtraError("docker", "docker") from error
    with docker_errors("reach Docker"):
        made: Any = cast("Any", docker).from_env(timeout=int(PATIENCE_S))
        try:
            made.ping()
        except BaseException:
            made.close()
            raise
    if str(made.api.base_url) != "http+docker://localhost":  # how it names a UNIX socket
        raise SandboxUnavailable("Docker runs on another machine; unset DOCKER_HOST to use one here")
    return made


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


def answering(pid: int) -> Any:
    """This process's client, once the engine answers: one that restarts is away for a few seconds.

    Raises:
        SandboxUnavailable: it does not come back, or was never there.
    """
    found = client(pid)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with docker_errors("reach Docker"):
                found.ping()
            return found
        except SandboxUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def docker_errors(doing: str) -> Generator[None]:
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
def known_runtime(runtime: str | None) -> Generator[None]:
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
