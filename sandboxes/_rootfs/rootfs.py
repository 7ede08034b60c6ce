"""The root file system that sandboxed code sees: one Python interpreter and its standard library.

A shell and ``prlimit`` are there too, because every command starts through them.

It is copied once per interpreter into a cache folder, rather than bound from the host piece by piece:
nothing else of the host can show through, an interpreter in a private home works as well as one in
``/usr``, and starting a sandbox costs a single mount.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from envkit.errors import SandboxUnavailable
from envkit.lease import Lease, reap
from envkit.sandbox import PACKAGES
from envkit.sandboxes._rootfs.guest_build import PYTHON as PYTHON
from envkit.sandboxes._rootfs.guest_build import WORKSPACE, build, make_readable

#: Who sandboxed code runs as where we are root.
NOBODY = 65534
#: Most that each scratch file system holds.
SCRATCH_BYTES, SCRATCH_FILES = 64 * 2**20, 16_000
#: All that a command finds in its environment.
ENVIRONMENT: Final = {
    "PATH": "/usr/bin",
    "HOME": WORKSPACE,
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    # The same bytes on every run: set order, and no bytecode that would turn up in exports.
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}

#: Part of the image's name; raise it when what is copied changes.
_BUILD = "4"


def image(uid: int, packages: Sequence[str] = ()) -> Path:
    """The folder to use as root, built on first use and shared by all later processes.

    Args:
        uid: the host user id that will read it.
        packages: distributions to copy into `envkit.sandbox.PACKAGES` from those that are installed here.

    Raises:
        SandboxUnavailable: no cache folder that ``uid`` can reach, the build failed, or a package is not
            installed or holds compiled code.
    """
    root = cache(uid) / root_name(packages)
    if not root.is_dir():
        reap(root.parent)
        lease = Lease(root.parent)
        try:
            build(lease.path / "root")
            copy_packages(packages, lease.path / "root" / PACKAGES[1:])
            with contextlib.suppress(OSError):  # another process finished the same image first
                (lease.path / "root").rename(root)
        except (OSError, subprocess.SubprocessError) as error:
            raise SandboxUnavailable(
                f"cannot build the sandbox's root folder in {root.parent}: {error}"
            ) from error
        finally:
            lease.close()
    return root


def root_name(packages: Sequence[str]) -> str:
    """What `image` calls the folder: another name for another interpreter, package or way to build it.

    Raises:
        SandboxUnavailable: a package is not installed or holds compiled code.
    """
    binary, library = Path(sys.executable).resolve(), Path(os.__file__).resolve().parent
    made = [str(binary), str(library), sys.version, str(binary.stat().st_mtime_ns), _BUILD]
    made += versions(packages)
    digest = hashlib.sha256("\0".join(made).encode()).hexdigest()[:16]
    return f"root-{sys.version_info[0]}.{sys.version_info[1]}-{digest}"


def versions(packages: Sequence[str]) -> list[str]:
    """Such as ``"pytest==9.0"``, sorted, each once.

    Raises:
        SandboxUnavailable: a package is not installed or holds compiled code.
    """
    found = (_distribution(name) for name in sorted(set(packages)))
    return [f"{each.name}=={each.version}" for each in found]


def copy_packages(packages: Sequence[str], folder: Path) -> None:
    """Copy distributions that are installed here, readable for everybody.

    Raises:
        SandboxUnavailable: a package is not installed or holds compiled code.
    """
    for found in (_distribution(name) for name in sorted(set(packages))):
        for file in found.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), target)
    make_readable(folder)


def cache(uid: int) -> Path:
    """The folder for what is made once and used by all.

    Args:
        uid: the host user id that will read it.

    Raises:
        SandboxUnavailable: no folder that ``uid`` can reach.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # Root's home is closed to the user that sandboxed code runs as.
    for folder in (home / "envkit", Path("/var/cache/envkit")):
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            found = folder.lstat()
            if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                continue  # others may have put something there
            folder.chmod(0o755)  # whatever the umask
            if reachable(folder, uid):
                return folder
    raise SandboxUnavailable(
        f"no cache folder that user {uid} can reach; set XDG_CACHE_HOME to a folder with mode 755"
    )


def reachable(path: Path, uid: int) -> bool:
    """Whether a host user may walk through to ``path``."""
    if uid == os.geteuid():
        return True
    return all(
        stat.st_mode & (0o100 if stat.st_uid == uid else 0o001)
        for stat in (folder.stat() for folder in (path, *path.parents))
    )


def _distribution(name: str) -> Distribution:
    """An installed distribution that can be copied.

    Raises:
        SandboxUnavailable: it is not installed, keeps no list of its files, or holds compiled code.
    """
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise SandboxUnavailable(f"package {name!r} is not installed here; pip install {name}") from None
    files = [file for file in found.files or () if ".." not in file.parts]
    if compiled := next((file for file in files if file.suffix == ".so"), None):
        raise SandboxUnavailable(
            f"package {name!r} holds compiled code, {compiled}; only pure Python can be put into a sandbox"
        )
    if not files or any(file.name.startswith("__editable__") for file in files):
        raise SandboxUnavailable(
            f"package {name!r} is not installed as files here; it is editable, or an egg"
        )
    return found
