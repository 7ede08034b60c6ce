"""The root folder that sandboxed code sees: Python, its standard library, and a shell with usual programs.

It is copied once per interpreter into a cache folder, and not bound from the host piece by piece. So nothing
else of the host can show through, an interpreter in a private home works as well as one in ``/usr``, and
starting a sandbox takes a single mount. The shell and ``prlimit`` start the commands;
``sed``, ``grep`` and the like are for agents that work in a shell.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

from envkit.errors import SandboxUnavailable
from envkit.runtime.lease import Lease, reap
from envkit.sandboxes._rootfs.guest_build import PACKAGES, WORKSPACE, build
from envkit.sandboxes._rootfs.guest_build import PYTHON as PYTHON

#: The user that sandboxed code runs as if this process is root.
NOBODY = 65534
#: Size of each scratch file system (``/tmp``, ``/dev/shm``).
SCRATCH_BYTES, SCRATCH_FILES = 64 * 2**20, 16_000
#: The whole environment of a command.
ENVIRONMENT: Final = {
    "PATH": f"/usr/bin:{PACKAGES}/bin",
    "HOME": WORKSPACE,
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    # Sets have the same order on every run, and no bytecode files appear in exports.
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Numerical libraries would start a thread for each core, which may be more than a command's limit.
    "OMP_NUM_THREADS": "1",
}

#: Part of the folder's name. Raise it when the copied files change.
_BUILD = "7"


def root_folder(uid: int) -> Path:
    """The root folder, built on first use and shared by all later processes.

    Args:
        uid: the host user that reads it.

    Raises:
        SandboxUnavailable: there is no cache folder that ``uid`` can reach, or the build failed.
    """
    return made(cache(uid) / root_name(), build)


def made(folder: Path, make: Callable[[Path], None]) -> Path:
    """``folder``, which ``make`` creates if it does not exist: whole, or not at all.

    Raises:
        SandboxUnavailable: that failed.
    """
    if not folder.is_dir():
        try:
            with scratch_folder(folder.parent) as scratch:
                make(scratch / "made")
                with contextlib.suppress(OSError):  # another process has made the same folder meanwhile
                    (scratch / "made").rename(folder)
        except (OSError, subprocess.SubprocessError) as error:
            raise SandboxUnavailable(f"cannot build {folder}: {error}") from error
    return folder


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Generator[Path]:
    """An empty folder, removed afterwards, or by a later call if this process is killed."""
    reap(parent)
    with contextlib.closing(Lease(parent)) as lease:
        yield lease.path


@contextlib.contextmanager
def one_at_a_time(file: Path) -> Generator[None]:
    """Hold the lock on a file, which is created; other processes and threads wait."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def root_name() -> str:
    """Name of the root folder; differs for another interpreter or way to build it."""
    binary, library = Path(sys.executable).resolve(), Path(os.__file__).resolve().parent
    parts = [str(binary), str(library), sys.version, str(binary.stat().st_mtime_ns), _BUILD]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return f"root-{sys.version_info[0]}.{sys.version_info[1]}-{digest}"


def cache(uid: int) -> Path:
    """The folder for root folders and images.

    Args:
        uid: the host user that reads it.

    Raises:
        SandboxUnavailable: there is no folder that ``uid`` can reach.
    """
    problems: list[str] = []
    # The user that sandboxed code runs as cannot enter root's home, so there is a second choice.
    for folder in (*_home_cache(), Path("/var/cache/envkit")):
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            real = folder.resolve() if folder.lstat().st_uid == os.geteuid() else folder
            problem = _unfit(real, uid)
        except OSError as error:
            problem = f"cannot be made ({error.strerror})"
        else:
            if not problem:
                return real
        problems.append(f"{folder} {problem}")
    raise SandboxUnavailable(
        f"no cache folder that user {uid} can reach: {'; '.join(problems)}. Mend one, or set XDG_CACHE_HOME "
        "to a folder with mode 755"
    )


def _unfit(folder: Path, uid: int) -> str:
    """The reason why a folder cannot be the cache; empty if there is none.

    Raises:
        OSError: its mode cannot be changed.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}"
    if found.st_mode & 0o022:
        return f"may hold files of other users: its mode is {found.st_mode & 0o777:o}; chmod go-w {folder}"
    folder.chmod(0o755)  # the umask may have cleared bits
    return "" if reachable(folder, uid) else "lies in a folder that this user may not enter"


def _home_cache() -> list[Path]:
    """The user's own cache folder, if the user has a home."""
    if os.path.isabs(named := os.environ.get("XDG_CACHE_HOME", "")):
        return [Path(named) / "envkit"]
    try:
        return [Path.home() / ".cache/envkit"]
    except RuntimeError:  # HOME is unset and the user has no account entry
        return []


def reachable(path: Path, uid: int) -> bool:
    """True if a host user may walk through all folders of ``path``."""
    if uid == os.geteuid():
        return True
    return all(
        found.st_mode & (0o100 if found.st_uid == uid else 0o001)
        for found in (folder.stat() for folder in (path, *path.parents))
    )
