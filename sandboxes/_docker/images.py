"""The images that Docker sandboxes run in: how each kind is made, found again and cleared away.

All hold what `envkit.sandboxes._rootfs.guest_build` copies: Python with its standard library, a shell and
``prlimit``. They differ in where Python comes from:

host        the one that runs this program; no registry, no network
dockerfile  that of a base image, ``python:3.X-slim`` unless told otherwise, from a registry or already here
debian      Debian's own, fetched by ``mmdebstrap`` from a mirror; no registry, and nothing of this machine's

An image's name ends in a digest of what it is made of: one that would be made otherwise today is not found.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from envkit.errors import ConfigError, SandboxUnavailable
from envkit.lease import Lease
from envkit.sandbox import PACKAGES
from envkit.sandboxes._rootfs import rootfs
from envkit.sandboxes._rootfs.packages import copy_packages, versions

#: From what an image can be made, in the order in which ``auto`` tries.
KINDS: Final = ("dockerfile", "host", "debian")

_REPOSITORY: Final = "envkit-sandbox"
#: Labels: what kind it is, its packages, its base, whose Python asked for it and on which host. Containers
#: inherit them, and must not be taken for sandboxes by them.
_KIND, _PACKAGES, _BASE = "envkit.image.kind", "envkit.image.packages", "envkit.image.base"
_PYTHON, _HOST = "envkit.image.python", "envkit.image.host"
#: Marks what a build needs on its way; also written in the Dockerfile.
_STAGE: Final = "envkit.image.stage"
#: For all of a download or a build.
_PATIENCE_S: Final = 600
#: Which of Debian's releases has which Python.
_RELEASES: Final = {(3, 11): "bookworm", (3, 13): "trixie"}
_DEBIAN_PACKAGES: Final = "python3,dash,util-linux,libc-bin,bash,tzdata"  # ldd is a script of bash's
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_VERSION: Final = f"{sys.version_info[0]}.{sys.version_info[1]}"


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the engine.

    Args:
        kind: one of `KINDS`.
        tag: its name.
        id: the digest of its content, as the engine gives it.
        size_bytes: its size.
        made: it was not there before.
        seconds: how long finding or making it took.
    """

    kind: str
    tag: str
    id: str
    size_bytes: int
    made: bool
    seconds: float


def require_kind(kind: str) -> None:
    """Refuse what is none of `KINDS`.

    Raises:
        ConfigError: says what there is.
    """
    if kind not in KINDS:
        raise ConfigError(f"Docker image {kind!r}; expected one of {', '.join(KINDS)}")


def name(kind: str, packages: Sequence[str] = ()) -> str:
    """The tag of the image that would be made now.

    Raises:
        ConfigError: no such kind.
        SandboxUnavailable: a package cannot be put into an image.
    """
    require_kind(kind)
    if kind == "host":
        recipe = rootfs.root_name(packages).rpartition("-")[2]
    else:
        parts = [
            kind,
            _text("_docker", "Dockerfile"),
            _text("_rootfs", "guest_build.py"),
            _DEBIAN_PACKAGES,
            *versions(packages),
        ]
        recipe = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return f"{_REPOSITORY}:{kind}-{_VERSION}-{recipe}"


def get(
    client: Any,
    kind: str,
    user: int,
    packages: Sequence[str] = (),
    *,
    base: str | None = None,
    force: bool = False,
) -> Image:
    """The image of a kind, made if it is not there. Of several processes that want the same, one makes it.

    Args:
        client: of the engine.
        kind: one of `KINDS`.
        user: who sandboxed code runs as.
        packages: distributions to copy into it, of those that are installed here.
        base: for ``dockerfile``, the image whose Python is taken; it replaces one that was made from another.
        force: make it anew.

    Raises:
        ConfigError: no such kind, or a base for another kind than ``dockerfile``.
        SandboxUnavailable: it cannot be made; the message says what to do.
        docker.errors.DockerException: the engine fails.
    """
    from requests.exceptions import RequestException

    if base is not None and kind != "dockerfile":
        raise ConfigError(f"a base image is for kind 'dockerfile'; found {base!r} for {kind!r}")
    began, tag = time.monotonic(), name(kind, packages)
    if not force and (found := _find(client, tag, base)):
        return _described(kind, tag, found, False, began)
    below = get(client, kind, user, base=base, force=force).tag if packages and kind != "host" else None
    folder = rootfs.cache(user)
    try:
        with _one_at_a_time(folder):
            found = None if force else _find(client, tag, base)
            if made := found is None:
                with contextlib.closing(Lease(folder)) as lease:
                    _make(client, kind, tag, user, packages, below or base, lease.path, force)
                found = client.images.get(tag)
    except RequestException:  # of the engine's; to Python it is an OSError too
        raise
    except OSError as error:
        raise SandboxUnavailable(f"cannot make the image {tag} in {folder}: {error}") from error
    return _described(kind, tag, found, made, began)


def _described(kind: str, tag: str, found: Any, made: bool, began: float) -> Image:
    return Image(kind, tag, found.id, found.attrs["Size"], made, time.monotonic() - began)


def _make(
    client: Any,
    kind: str,
    tag: str,
    user: int,
    packages: Sequence[str],
    base: str | None,
    scratch: Path,
    force: bool,
) -> None:
    """Make an image; ``base`` is what it starts from, if that was said, and ``scratch`` an empty folder."""
    labels = {
        _KIND: kind,
        _PACKAGES: " ".join(sorted(set(packages))),
        _PYTHON: str(_interpreter()),
        _HOST: platform.node(),
    }
    if kind == "host":
        archive = scratch / "image.tar"
        with tarfile.open(archive, "w") as file:
            file.add(rootfs.root_folder(user, packages), ".", filter=_as_root)
        _import(client, archive, labels, tag)
        return
    context = scratch / "context"
    context.mkdir()
    if packages:
        dockerfile = f"FROM {base}\nCOPY packages {PACKAGES}\n"
        copy_packages(packages, context / "packages")
    else:
        dockerfile = _text("_docker", "Dockerfile")
        (context / "guest_build.py").write_text(_text("_rootfs", "guest_build.py"))
        if kind == "debian":
            base = _import(client, _bootstrapped(scratch), {_STAGE: kind})
        else:
            _pull(client, base := base or f"python:{_VERSION}-slim")
            labels[_BASE] = base
    (context / "Dockerfile").write_text(dockerfile)
    _build(client, tag, context, labels, {"BASE": base, "VERSION": _VERSION}, force)


def reap(client: Any, user: int) -> list[str]:
    """Remove what builds left, and this host's images that nothing uses and nobody would find any more.

    An image is kept that a container uses, or that another interpreter asked for which is still here.

    Returns:
        The names of the images, or short ids where they have none.

    Raises:
        docker.errors.DockerException: the engine fails.
    """
    from docker.errors import APIError

    removed: list[str] = []
    with _one_at_a_time(rootfs.cache(user)):  # a build under way needs what it has made so far
        stages = client.images.list(filters={"label": _STAGE, "dangling": True})
        ours = client.images.list(filters={"label": f"{_HOST}={platform.node()}"})
        for image in [*stages, *(image for image in ours if _is_old(image))]:
            with contextlib.suppress(APIError):  # a container uses it, or it went with another one
                client.images.remove(image.id)
                removed.append((image.tags or [image.short_id])[0])
    return removed


def _is_old(image: Any) -> bool:
    """Whether it was made for an interpreter that is no more, or in a way that is no longer this one's."""
    asked_for_by = Path(image.labels[_PYTHON])
    if asked_for_by != _interpreter() and asked_for_by.exists():
        return False
    try:
        return name(image.labels[_KIND], image.labels[_PACKAGES].split()) not in image.tags
    except (ConfigError, SandboxUnavailable):  # a kind or a package that is no more
        return True


def _interpreter() -> Path:
    return Path(sys.executable).resolve()


def _find(client: Any, tag: str, base: str | None) -> Any:
    """The image of that name, or nothing; one made from another base is not it."""
    from docker.errors import ImageNotFound

    try:
        found = client.images.get(tag)
    except ImageNotFound:
        return None
    return found if base is None or found.labels.get(_BASE) == base else None


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Generator[None]:
    handle = os.open(folder / "images.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _pull(client: Any, base: str) -> None:
    """Fetch an image from its registry, unless it is here."""
    from docker.errors import DockerException, ImageNotFound
    from requests.exceptions import RequestException

    with contextlib.suppress(ImageNotFound):
        client.images.get(base)
        return
    try:
        client.api.inspect_distribution(base)  # within the client's patience, which a pull does not keep to
        _follow(client.api.pull(base, stream=True, decode=True))
    except (DockerException, RequestException) as error:
        said = getattr(error, "explanation", None) or error
        raise SandboxUnavailable(
            f"cannot pull {base}: {said}; bring it here (docker pull, docker load), name another with "
            "--base, or make the image without a registry: envkit sandbox build --from host"
        ) from error


def _bootstrapped(scratch: Path) -> Path:
    """An archive with Debian's Python and what that needs, unpacked and never configured."""
    if (release := _RELEASES.get(sys.version_info[:2])) is None:
        raise SandboxUnavailable(
            f"no release of Debian has Python {_VERSION}; make the image from this machine's: "
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
        said = errors[0] if errors else f"exit status {done.returncode}"
        raise SandboxUnavailable(f"mmdebstrap cannot fetch Debian's {release}: {said}")
    return archive


def _import(client: Any, archive: Path, labels: Mapping[str, str], tag: str | None = None) -> str:
    """Turn an archive of a root into an image; returns its id."""
    repository, _, version = (tag or "").partition(":")
    changes = [f"LABEL {key}={json.dumps(value)}" for key, value in labels.items()]
    said = client.api.import_image_from_file(
        str(archive), repository=repository or None, tag=version or None, changes=changes
    )
    return str(json.loads(said.splitlines()[-1])["status"])


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
    """Wait for the end of what the engine does, which it reports line by line."""
    from docker.errors import DockerException

    deadline, said = time.monotonic() + _PATIENCE_S, ""
    for line in lines:
        if "error" in line:
            raise DockerException(f"{line['error']} {said}".strip())
        words = _COLOUR.sub("", str(line.get("stream", ""))).strip()
        said = said if words.startswith("--->") else words or said  # not the engine's own remarks
        if time.monotonic() > deadline:
            raise DockerException(f"not done after {_PATIENCE_S} s")


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


@functools.cache
def _text(package: str, file: str) -> str:
    return resources.files(f"envkit.sandboxes.{package}").joinpath(file).read_text()
