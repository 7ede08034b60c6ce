"""Labels containers and volumes with their owner, and removes those whose owner is dead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from pathlib import Path
from typing import Final

from envkit.errors import SandboxUnavailable
from envkit.sandboxes._docker import engine as docker_engine
from envkit.sandboxes._docker.engine import docker_errors

#: Labels of envkit's containers and volumes: the owner's lease folder, and the host that the owner runs on.
LEASE: Final = "envkit.runtime.lease"
HOST: Final = "envkit.host"


def labels(lease: Path) -> dict[str, str]:
    """Labels of a container or volume that belongs to the owner of a lease folder."""
    return {LEASE: str(lease), HOST: platform.node()}


def reap() -> list[str]:
    """Remove containers and volumes on this host whose owner is dead; returns the containers' names.

    Raises:
        SandboxUnavailable: Docker cannot be reached.
    """
    names: list[str] = []
    client = docker_engine.client(os.getpid())
    with docker_errors("list containers"):
        ours = {"label": f"{HOST}={platform.node()}"}
        found = client.containers.list(all=True, filters=ours, ignore_removed=True)
        # Newest first, because a container that holds volumes is older than those that use them.
        for container in sorted(found, key=lambda container: container.attrs["Created"], reverse=True):
            if not _is_held(container.labels[LEASE]):
                with contextlib.suppress(SandboxUnavailable), docker_errors("remove a container"):
                    container.remove(force=True, v=True)  # fails if another process was faster
                    names.append(container.name)
        # Volumes whose container another process has removed.
        for volume in client.volumes.list(filters={**ours, "dangling": True}):
            if not _is_held(volume.attrs["Labels"][LEASE]):
                with contextlib.suppress(SandboxUnavailable), docker_errors("remove a volume"):
                    volume.remove()
    return names


def _is_held(lease: str) -> bool:
    try:
        folder = os.open(lease, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # another user's folder, so its owner cannot be known to be dead
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(folder)
    return False
