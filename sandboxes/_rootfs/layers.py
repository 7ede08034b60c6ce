"""Read-only folders that sandboxes see beside the root: packages and data files.

Each lies in the cache folder under a name with a digest of its content, and is made once per machine.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from envkit.errors import ConfigError
from envkit.sandbox import DATA, PACKAGES, Contents, Lock
from envkit.sandboxes._rootfs import wheels
from envkit.sandboxes._rootfs.guest_build import make_readable
from envkit.sandboxes._rootfs.rootfs import cache, made, one_at_a_time, scratch_folder
from envkit.sandboxes._sandbox import system_errors

_LOG: Final = logging.getLogger("envkit.sandboxes")
#: Part of the folders' names. Raise it when their content changes.
_BUILD: Final = "1"
#: Locked while pip runs, so that two processes do not install the same.
_ONE_PIP: Final = "wheels.lock"


def require_no_image(name: str, contents: Contents) -> None:
    """Raise if sandboxes of a kind that has no images are to be made of one.

    Raises:
        ConfigError: names the sandbox that can.
    """
    if contents.image:
        raise ConfigError(
            f"sandbox {name!r} cannot be made of image {contents.image!r}, only docker can; use --sandbox "
            "docker"
        )


def folders(uid: int, contents: Contents) -> Mapping[str, Path]:
    """Folders of the host to mount in a sandbox, by their place there. They are made on first use.

    Args:
        uid: the host user that reads them.
        contents: its packages, toolchains and data.

    Raises:
        ConfigError, SandboxUnavailable: see `envkit.sandbox.SandboxBackend.with_contents`.
    """
    if not (contents.packages or contents.toolchains or contents.data):
        return {}
    with system_errors("prepare what sandboxes hold"):
        return _folders(cache(uid), contents, data_digest(contents.data))


@functools.lru_cache(maxsize=64)
def _folders(parent: Path, contents: Contents, digest_of_data: str) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    if contents.packages or contents.toolchains:
        found[PACKAGES] = _packages_folder(parent, contents)
    if contents.data:
        digest = _digest(digest_of_data)
        found[DATA] = made(parent / f"data-{digest}", lambda folder: _copy(contents.data, folder))
    return found


def lock(uid: int, contents: Contents) -> Lock:
    """Versions and digests of packages, toolchains and data.

    Raises:
        ConfigError, SandboxUnavailable: as for `folders`.
    """
    with system_errors("look up what sandboxes hold"):
        packages = _locked(cache(uid), contents) if contents.packages or contents.toolchains else ()
        return Lock(packages, data_digest(contents.data))


def _packages_folder(parent: Path, contents: Contents) -> Path:
    pinned, tools = _locked(parent, contents), wheels.chosen(contents.toolchains)
    folder = parent / f"packages-{_digest(*pinned, *map(repr, tools))}"
    if not folder.is_dir():
        with one_at_a_time(parent / _ONE_PIP):
            made(folder, lambda new: wheels.install(pinned, tools, new))
    return folder


def _locked(parent: Path, contents: Contents) -> tuple[str, ...]:
    """The lock for requirements, which is kept: without a version, they mean the same on every later day."""
    lines = wheels.requirements(contents.packages, contents.toolchains)
    file = parent / f"wheels-{_digest(*lines)}.txt"
    with contextlib.ExitStack() as held:
        if not file.exists():
            held.enter_context(one_at_a_time(parent / _ONE_PIP))
        if not file.exists():
            _LOG.warning("installing for sandboxes, once: %s", ", ".join(lines))
            scratch = held.enter_context(scratch_folder(parent))
            whole = scratch / "lock"
            whole.write_text("".join(f"{line}\n" for line in wheels.resolve(lines, scratch)))
            whole.rename(file)
    return tuple(file.read_text().splitlines())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join((_BUILD, wheels.platform_key(), *parts)).encode()).hexdigest()[:16]


def data_digest(paths: tuple[Path, ...]) -> str:
    """SHA-256 over names and present contents of data files, as hex; empty if there are none.

    Raises:
        ConfigError: one is neither a file nor a folder, such as a symlink.
    """
    named = sorted((name, path) for top in paths for name, path in _files(top))
    return _digest_of_files(tuple((*one, _version(one[1])) for one in named)) if paths else ""


@functools.lru_cache(maxsize=64)
def _digest_of_files(files: tuple[tuple[str, Path, tuple[int, ...]], ...]) -> str:
    """The digest of files, by name, path and version: read again if a version changes."""
    total = hashlib.sha256()
    for name, path, _ in files:
        with path.open("rb") as file:
            total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _version(path: Path) -> tuple[int, ...]:
    """Numbers that change whenever a file is changed or replaced."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _files(top: Path) -> Iterator[tuple[str, Path]]:
    """Name in the sandbox and path of each file."""
    for path in sorted((top, *top.rglob("*"))):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ConfigError(f"data {path} is neither a file nor a folder; put a copy there instead")
        if path.is_file():
            yield path.relative_to(top.parent).as_posix(), path


def _copy(paths: Sequence[Path], folder: Path) -> None:
    folder.mkdir()
    for path in paths:
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, folder / path.name)
    make_readable(folder)
