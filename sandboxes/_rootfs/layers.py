"""Read-only folders that sandboxes see beside the root: packages and data files.

Each lies in the cache folder under a name with a digest of its content, and is made once per machine. A
process that begins to use one sets its time of change, and locks it until the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
#: Folders that no environment declares are kept for so long after their last use.
_KEPT_S: Final = 30 * 24 * 3600.0
#: Descriptors that hold the locks on the folders that this process uses.
_LOCKS: Final[dict[Path, int]] = {}


@dataclass(frozen=True, slots=True)
class RemovedLayer:
    """A folder that `reap` has removed.

    Args:
        name: of the folder.
        packages: ``NAME-VERSION`` of the packages in it, sorted; empty for data.
        size_bytes: of its files.
    """

    name: str
    packages: tuple[str, ...]
    size_bytes: int


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
        data = parent / _data_name(digest_of_data)
        found[DATA] = _locked_folder(data, lambda: made(data, lambda folder: _copy(contents.data, folder)))
    return found


def _locked_folder(folder: Path, make: Callable[[], object]) -> Path:
    """``folder``, which `reap` keeps from now on until this process ends.

    Args:
        folder: a folder of the cache.
        make: creates it if it does not exist.
    """
    while True:
        make()
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # another process has removed it meanwhile
            continue
        fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), folder.stat()):
                os.utime(lock)
                if (earlier := _LOCKS.get(folder)) is not None:
                    os.close(earlier)
                _LOCKS[folder] = lock
                return folder
        os.close(lock)


def reap(uid: int, declared: Iterable[Contents]) -> list[RemovedLayer]:
    """Remove folders that nothing declares, no process uses, and none has begun to use for 30 days.

    The versions that pip had found are kept, so that a later use installs the same.

    Args:
        uid: the host user that reads the folders.
        declared: what the installed environments declare.

    Raises:
        SandboxError: a folder cannot be removed.
    """
    with system_errors("remove what sandboxes held"):
        parent = cache(uid)
        kept = {name for contents in declared for name in _names(parent, contents)}
        found = sorted((*parent.glob("packages-*"), *parent.glob("data-*")))
        layers = (_reaped(folder) for folder in found if folder.name not in kept)
        return [layer for layer in layers if layer is not None]


def _reaped(folder: Path) -> RemovedLayer | None:
    """Remove a folder, unless a process uses it or has begun to within the last 30 days."""
    with contextlib.ExitStack() as held:
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            held.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):  # a process uses it, or another one has removed it
            return None
        if time.time() - os.fstat(lock).st_mtime < _KEPT_S:
            return None
        packages = sorted(path.name.removesuffix(".dist-info") for path in folder.glob("*.dist-info"))
        size_bytes = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
        # Gone at once for processes that look for it, which make it again.
        folder.rename(held.enter_context(scratch_folder(folder.parent)) / folder.name)
    return RemovedLayer(folder.name, tuple(packages), size_bytes)


def _names(parent: Path, contents: Contents) -> Iterator[str]:
    """Names of the folders for these contents, as far as they are known without an installation."""
    lines = wheels.requirements(contents.packages, contents.toolchains)
    if lines and (file := _lock_file(parent, lines)).exists():
        yield _packages_name(file.read_text().splitlines(), contents)
    if contents.data:
        yield _data_name(data_digest(contents.data))


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
    folder = parent / _packages_name(pinned, contents)

    def install() -> None:
        if not folder.is_dir():
            with one_at_a_time(parent / _ONE_PIP):
                made(folder, lambda new: wheels.install(pinned, tools, new))

    return _locked_folder(folder, install)


def _packages_name(pinned: Sequence[str], contents: Contents) -> str:
    return f"packages-{_digest(*pinned, *map(repr, wheels.chosen(contents.toolchains)))}"


def _data_name(digest_of_data: str) -> str:
    return f"data-{_digest(digest_of_data)}"


def _lock_file(parent: Path, lines: Sequence[str]) -> Path:
    return parent / f"wheels-{_digest(*lines)}.txt"


def _locked(parent: Path, contents: Contents) -> tuple[str, ...]:
    """The lock for requirements, which is kept: without a version, they mean the same on every later day."""
    lines = wheels.requirements(contents.packages, contents.toolchains)
    file = _lock_file(parent, lines)
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
