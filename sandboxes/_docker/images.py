"""Builds, finds and removes the images of Docker sandboxes.

All hold what `envkit.sandboxes._rootfs.guest_build` copies: Python with its standard library, a shell and
``prlimit``. They differ in where Python comes from:

host        the interpreter that runs this program; needs neither registry nor network
dockerfile  a base image, by default ``python:3.X-slim``, from a registry or already in the engine
debian      Debian's package, fetched by ``mmdebstrap`` from a mirror; needs no registry

An image's name ends in a digest of its recipe, so an outdated image is not found. Its base is a label.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from envkit.errors import ConfigError, SandboxUnavailable
from envkit.runtime.lease import Lease
from envkit.sandboxes._rootfs import rootfs

#: Kinds of images, in the order in which ``auto`` tries them.
KINDS: Final = ("dockerfile", "host", "debian")

_REPOSITORY: Final = "envkit-sandbox"
#: Locked while an image is built or removed.
_LOCK: Final = "images.lock"
#: Labels: kind, base, and the interpreter and host that it was built for. Containers inherit these labels, so
#: no label of a sandbox may be among them.
_KIND, _BASE = "envkit.image.kind", "envkit.image.base"
_PYTHON, _HOST = "envkit.image.python", "envkit.image.host"
#: Label of intermediate images of a build; the Dockerfile sets it too.
_STAGE: Final = "envkit.image.stage"
_NO_BASE: Final = (
    "bring it here (docker pull, docker load), name another with --base, or build the image without a "
    "registry: envkit sandbox build --from host"
)
#: Limit on a whole download or build.
_PATIENCE_S: Final = 600
#: Debian's release with each version of Python.
_RELEASES: Final = {(3, 11): "bookworm", (3, 13): "trixie"}
_DEBIAN_PACKAGES: Final = "python3,dash,util-linux,libc-bin,bash,tzdata,libstdc++6"  # ldd is a bash script
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_VERSION: Final = f"{sys.version_info[0]}.{sys.version_info[1]}"


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the engine.

    Args:
        kind: one of `KINDS`.
        tag: its name.
        id: digest of its content, from the engine.
        size_bytes: its size.
        made: True if this call built it.
        seconds: time to find or build it.
    """

    kind: str
    tag: str
    id: str
    size_bytes: int
    made: bool
    seconds: float


def require_kind(kind: str) -> None:
    """Raise if a kind is unknown.

    Raises:
        ConfigError: lists the kinds.
    """
    if kind not in KINDS:
        raise ConfigError(f"Docker image {kind!r}; expected one of {', '.join(KINDS)}")


def name(kind: str) -> str:
    """Tag of the image that would be built now.

    Raises:
        ConfigError: there is no such kind.
    """
    require_kind(kind)
    if kind == "host":
        recipe = rootfs.root_name().rpartition("-")[2]
    else:
        parts = [kind, _text("_docker", "Dockerfile"), _text("_rootfs", "guest_build.py"), _DEBIAN_PACKAGES]
        recipe = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return f"{_REPOSITORY}:{kind}-{_VERSION}-{recipe}"


def get(client: Any, kind: str, user: int, *, base: str | None = None, force: bool = False) -> Image:
    """The image of a kind, built if it does not exist. If several processes want it, one builds it.

    Args:
        client: the Docker client.
        kind: one of `KINDS`.
        user: the user that sandboxed code runs as.
        base: for ``dockerfile``, the image that Python comes from. Replaces an image from another base.
        force: build it even if it exists.

    Raises:
        ConfigError: there is no such kind, or ``base`` is given for another kind than ``dockerfile``.
        SandboxUnavailable: it cannot be built; the message says what to do.
        docker.errors.DockerException: the engine fails.
    """
    from requests.exceptions import RequestException

    if base is not None and kind != "dockerfile":
        raise ConfigError(f"a base image is for kind 'dockerfile'; found {base!r} for {kind!r}")
    began, tag = time.monotonic(), name(kind)
    if not force and (found := _find(client, tag, base)):
        return _described(kind, tag, found, False, began)
    folder = rootfs.cache(user)
    try:
        with rootfs.one_at_a_time(folder / _LOCK):
            found = None if force else _find(client, tag, base)
            if made := found is None:
                with contextlib.closing(Lease(folder)) as lease:
                    _make(client, kind, tag, user, base, lease.path, force)
                found = client.images.get(tag)
    except RequestException:  # the engine's, which is an OSError as well
        raise
    except OSError as error:
        raise SandboxUnavailable(f"cannot build the image {tag} in {folder}: {error}") from error
    return _described(kind, tag, found, made, began)


def _described(kind: str, tag: str, found: Any, made: bool, began: float) -> Image:
    return Image(kind, tag, found.id, found.attrs["Size"], made, time.monotonic() - began)


def _make(client: Any, kind: str, tag: str, user: int, base: str | None, scratch: Path, force: bool) -> None:
    """Build an image from ``base`` (``None`` for the kind's default), in the empty folder ``scratch``."""
    labels = {_KIND: kind, _PYTHON: str(_interpreter()), _HOST: platform.node()}
    if kind == "host":
        archive = scratch / "image.tar"
        with tarfile.open(archive, "w") as file:
            file.add(rootfs.root_folder(user), ".", filter=_as_root)
        _import(client, archive, labels, tag)
        return
    context = scratch / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(_text("_docker", "Dockerfile"))
    (context / "guest_build.py").write_text(_text("_rootfs", "guest_build.py"))
    if kind == "debian":
        base = _import(client, _bootstrapped(scratch), {_STAGE: kind})
    else:
        pull(client, base := base or f"python:{_VERSION}-slim", _NO_BASE)
        labels[_BASE] = base
    _build(client, tag, context, labels, {"BASE": base, "VERSION": _VERSION}, force)


def reap(client: Any, user: int) -> list[str]:
    """Remove intermediate images of builds, and outdated images of this host.

    Keeps an image that a container uses, or that was built for another interpreter which still exists.

    Returns:
        The names of the images, or short ids if they have no name.

    Raises:
        docker.errors.DockerException: the engine fails.
    """
    from docker.errors import APIError

    removed: list[str] = []
    # Never during a build, which needs its intermediate images.
    with rootfs.one_at_a_time(rootfs.cache(user) / _LOCK):
        stages = client.images.list(filters={"label": _STAGE, "dangling": True})
        ours = client.images.list(filters={"label": f"{_HOST}={platform.node()}"})
        for image in [*stages, *(image for image in ours if _is_old(image))]:
            with contextlib.suppress(APIError):  # a container uses it, or it is gone already
                client.images.remove(image.id)
                removed.append((image.tags or [image.short_id])[0])
    return removed


def _is_old(image: Any) -> bool:
    """True if its interpreter is gone, or if the image would be built differently now."""
    built_for = Path(image.labels[_PYTHON])
    if built_for != _interpreter() and built_for.exists():
        return False
    try:
        return name(image.labels[_KIND]) not in image.tags
    except ConfigError:  # the kind no longer exists
        return True


def _interpreter() -> Path:
    return Path(sys.executable).resolve()


def _find(client: Any, tag: str, base: str | None) -> Any:
    """The image of that name, or ``None``. With ``base``, an image from another base does not count."""
    from docker.errors import ImageNotFound

    try:
        found = client.images.get(tag)
    except ImageNotFound:
        return None
    return found if base is None or found.labels.get(_BASE) == base else None


def pull(client: Any, base: str, remedy: str) -> None:
    """Fetch an image from its registry, unless the engine has it.

    Args:
        client: the Docker client.
        base: its name.
        remedy: what to do if that fails.

    Raises:
        SandboxUnavailable: the registry does not give it.
    """
    from docker.errors import DockerException, ImageNotFound
    from requests.exceptions import RequestException

    with contextlib.suppress(ImageNotFound):
        client.images.get(base)
        return
    try:
        client.api.inspect_distribution(base)  # respects the client's timeout, which a pull does not
        _follow(client.api.pull(base, stream=True, decode=True))
    except (DockerException, RequestException) as error:
        reason = getattr(error, "explanation", None) or error
        raise SandboxUnavailable(f"cannot pull {base}: {reason}; {remedy}") from error


def _bootstrapped(scratch: Path) -> Path:
    """An archive with Debian's Python and its dependencies, unpacked but not configured."""
    if (release := _RELEASES.get(sys.version_info[:2])) is None:
        raise SandboxUnavailable(
            f"no release of Debian has Python {_VERSION}; build the image from this machine's: "
            "envkit sandbox build --from host"
        )
    archive = scratch / "debian.tar"
    command = ["mmdebstrap", "--variant=extract", f"--include={_DEBIAN_PACKAGES}"]
    command += ["--aptopt=Acquire::http::Timeout 30", "--aptopt=Acquire::Retries 1", release, str(archive)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    except FileNotFoundError:
        raise SandboxUnavailable("mmdebstrap is not installed; apt install mmdebstrap") from None
    except subprocess.TimeoutExpired:
        raise SandboxUnavailable(f"mmdebstrap did not end within {_PATIENCE_S} s") from None
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E: ")]
        reason = errors[0] if errors else f"exit status {done.returncode}"
        raise SandboxUnavailable(f"mmdebstrap cannot fetch Debian's {release}: {reason}")
    return archive


def _import(client: Any, archive: Path, labels: Mapping[str, str], tag: str | None = None) -> str:
    """Import an archive of a root file system as an image; returns its id."""
    repository, _, version = (tag or "").partition(":")
    changes = [f"LABEL {key}={json.dumps(value)}" for key, value in labels.items()]
    output = client.api.import_image_from_file(
        str(archive), repository=repository or None, tag=version or None, changes=changes
    )
    return str(json.loads(output.splitlines()[-1])["status"])


def _build(
    client: Any, tag: str, context: Path, labels: Mapping[str, str], arguments: Mapping[str, Any], force: bool
) -> None:
    from docker.errors import DockerException

    with tempfile.TemporaryFile(dir=context.parent) as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.add(context, ".", filter=_as_root)
        file.seek(0)
        try:
            _follow(
                client.api.build(
                    fileobj=file,
                    custom_context=True,
                    tag=tag,
                    buildargs=arguments,
                    labels=labels,
                    nocache=force,
                    rm=True,
                    forcerm=True,
                    network_mode="none",
                    timeout=_PATIENCE_S,
                    decode=True,
                )
            )
        except DockerException as error:
            raise SandboxUnavailable(f"cannot build {tag} from {arguments['BASE']}: {error}") from error


def _follow(lines: Iterable[Any]) -> None:
    """Read the engine's progress report line by line until it has finished."""
    from docker.errors import DockerException

    deadline, last_line = time.monotonic() + _PATIENCE_S, ""
    for line in lines:
        if "error" in line:
            raise DockerException(f"{line['error']} {last_line}".strip())
        words = _COLOUR.sub("", str(line.get("stream", ""))).strip()
        last_line = last_line if words.startswith("--->") else words or last_line
        if time.monotonic() > deadline:
            raise DockerException(f"not done after {_PATIENCE_S} s")


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


@functools.cache
def _text(package: str, file: str) -> str:
    return resources.files(f"envkit.sandboxes.{package}").joinpath(file).read_text()
