"""Images that environments name: fetches one, and finds out what containers of it need."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Final

from envkit.errors import ConfigError
from envkit.sandbox import DATA, OCI_LAYOUT
from envkit.sandboxes._docker import images, oci_layout
from envkit.sandboxes._docker.base import Base
from envkit.sandboxes._docker.engine import docker_errors, known_runtime
from envkit.sandboxes._linux import seccomp
from envkit.sandboxes._rootfs.rootfs import ENVIRONMENT, WORKSPACE

#: The oldest Python that envkit's own programs in a container run on.
_OLDEST: Final = (3, 11)
#: Docker's own, for an image without.
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROBE_BYTES: Final = 256 * 2**20
#: Folders of an image that containers cover by something of their own.
_COVERED: Final = ("/dev", "/proc", "/run", "/sys", "/tmp", DATA, WORKSPACE)
#: Prints the interpreter, its version, the folders in the root that hold something, and the number of files.
_PROBE: Final = """
import json, os, sys
def holds(path):
    try: return bool(os.listdir(path))
    except OSError: return False
found = [entry.path for entry in os.scandir("/") if entry.is_dir(follow_symlinks=False) and holds(entry.path)]
kept = sorted({*found} - {*sys.argv[1:]})
files = sum(len(names) + 1 for top in kept for _, _, names in os.walk(top))
print(json.dumps([sys.executable, sys.version_info[:2], kept, files]))
"""


@functools.lru_cache(maxsize=16)
def named(client: Any, name: str, user: int, runtime: str | None) -> Base:
    """An image that an environment names, fetched unless the engine has it.

    Args:
        client: the Docker client.
        name: OCI image name, with a tag or digest; or ``oci:PATH``, see `envkit.sandbox.Contents.image`.
        user: the user that sandboxed code runs as.
        runtime: name of the container runtime; ``None`` for the engine's default.

    Raises:
        ConfigError: sandboxes cannot be made of it.
        SandboxUnavailable: it cannot be fetched, or the engine fails.
    """
    with docker_errors(f"fetch image {name}"):
        if name.startswith(OCI_LAYOUT):
            found = client.images.get(oci_layout.load(client, Path(name.removeprefix(OCI_LAYOUT))))
        else:
            images.pull(client, name, "bring it here: docker pull, or docker load")
            found = client.images.get(name)
        config = found.attrs["Config"]
    if volumes := sorted(config.get("Volumes") or ()):
        raise ConfigError(
            f"image {name!r} declares the volume {volumes[0]}, in which commands could write without a "
            "limit; build an image from it without VOLUME"
        )
    python, version, folders, files = _probed(client, name, found.id, user, runtime)
    if tuple(version) < _OLDEST:
        raise ConfigError(
            f"image {name!r} has Python {'.'.join(map(str, version))}; expected 3.11 or newer, because a "
            "program of envkit starts the commands in it"
        )
    own = dict(line.split("=", 1) for line in config.get("Env") or ())
    environment = {**own, **ENVIRONMENT, "PATH": own.get("PATH", _PATH)}
    pinned = min(found.attrs.get("RepoDigests") or [found.id])
    return Base(found.id, python, tuple(folders), files, environment, pinned)


def _probed(client: Any, name: str, id: str, user: int, runtime: str | None) -> list[Any]:
    """Look at an image from inside; see `_PROBE`."""
    from docker.errors import APIError, ContainerError

    with docker_errors(f"look into image {name}"), known_runtime(runtime):
        try:
            output = client.containers.run(
                id,
                entrypoint=["python3", "-c", _PROBE, *_COVERED],
                user=f"{user}:{user}",
                environment={},
                network_mode="none",
                ipc_mode="none",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges", f"seccomp={seccomp.profile()}"],
                pids_limit=16,
                mem_limit=_PROBE_BYTES,
                log_config={"type": "json-file", "config": {"max-size": "1m"}},
                runtime=runtime,
                remove=True,
            )
            return list(json.loads(output))
        except (APIError, ContainerError, ValueError) as error:
            if isinstance(error, APIError) and "python3" not in str(error.explanation):
                raise
            raise ConfigError(
                f"image {name!r} runs no python3, and a program of envkit starts the commands in it; add "
                f"Python 3.11 or newer to the image ({error})"
            ) from error
