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
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from envkit.errors import SandboxUnavailable
from envkit.sandbox import PACKAGES
from envkit.sandboxes._temporary import Lease, reap

PYTHON = "/usr/bin/python3"
WORKSPACE = "/workspace"
#: Who sandboxed code runs as where we are root.
NOBODY = 65534
#: Size of each scratch file system.
SCRATCH_BYTES = 64 * 2**20
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

#: What a program needs neither to run nor to import: third-party packages, wheels, tests, tools.
_LEFT_OUT = shutil.ignore_patterns(
    *("site-packages", "dist-packages", "ensurepip", "test", "tests", "idlelib", "tkinter", "turtledemo"),
    *("_tkinter.*", "config-*", "*.opt-1.pyc", "*.opt-2.pyc", "sitecustomize*", "usercustomize*"),
)
#: Part of the image's name; raise it when `_build` changes.
_BUILD = "3"
_ZONES = Path("/usr/share/zoneinfo")  # the data behind the standard library's `zoneinfo`


def image(uid: int, packages: Sequence[str] = ()) -> Path:
    """The folder to use as root, built on first use and shared by all later processes.

    Args:
        uid: the host user id that will read it.
        packages: distributions to copy into `envkit.sandbox.PACKAGES` from those that are installed here.

    Raises:
        SandboxUnavailable: no cache folder that ``uid`` can reach, the build failed, or a package is not
            installed or holds compiled code.
    """
    binary, library = Path(sys.executable).resolve(), Path(os.__file__).resolve().parent
    third_party = [_distribution(name) for name in sorted(set(packages))]
    made = [str(binary), str(library), sys.version, str(binary.stat().st_mtime_ns), _BUILD]
    made += [f"{found.name}=={found.version}" for found in third_party]
    digest = hashlib.sha256("\0".join(made).encode()).hexdigest()[:16]
    cache = _cache(uid)
    root = cache / f"root-{sys.version_info[0]}.{sys.version_info[1]}-{digest}"
    if not root.is_dir():
        reap(cache)
        lease = Lease(cache)
        try:
            _build(lease.path / "root", binary, library, third_party)
            with contextlib.suppress(OSError):  # another process finished the same image first
                (lease.path / "root").rename(root)
        except (OSError, subprocess.SubprocessError) as error:
            raise SandboxUnavailable(f"cannot build the sandbox's root folder in {cache}: {error}") from error
        finally:
            lease.close()
    return root


def _cache(uid: int) -> Path:
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


def _build(root: Path, binary: Path, library: Path, third_party: Sequence[Distribution]) -> None:
    for folder in ("usr/bin", "usr/lib", "usr/share", "proc", "dev", "tmp", WORKSPACE[1:]):
        (root / folder).mkdir(parents=True)
    # One flat library folder under every name that a loader's default search path knows.
    for link, target in {"lib": "usr/lib", "lib64": "usr/lib", "usr/lib64": "lib", "bin": "usr/bin"}.items():
        (root / link).symlink_to(target)
    python = root / PYTHON[1:]
    shutil.copy2(binary, python)
    for alias in ("python", f"python3.{sys.version_info[1]}"):
        python.with_name(alias).symlink_to(python.name)
    tools = [_tool("sh"), _tool("prlimit")]
    for tool, name in zip(tools, ("sh", "prlimit"), strict=True):
        shutil.copy2(tool, root / "usr/bin" / name)
    standard = root / "usr/lib" / library.name
    shutil.copytree(library, standard, ignore=_LEFT_OUT, ignore_dangling_symlinks=True)
    libraries = _shared_libraries([binary, *tools, *standard.glob("lib-dynload/*.so")])
    # The C library loads this one only when a thread is ended, and aborts where it is not there.
    unwinder = (path.with_name("libgcc_s.so.1") for path in libraries if path.name.startswith("libc.so"))
    for shared in (*libraries, *filter(Path.exists, unwinder)):
        shutil.copy2(shared, root / "usr/lib" / shared.name)
    for found in third_party:
        for file in found.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                target = root / PACKAGES[1:] / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), target)
    if _ZONES.is_dir():
        shutil.copytree(_ZONES, root / _ZONES.relative_to("/"), symlinks=True)
    for folder, _, names in os.walk(root):
        # Readable for the sandbox's user whatever the umask was here.
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            if not os.path.islink(path):
                os.chmod(path, 0o755)


def _tool(name: str) -> Path:
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not installed; apt install dash util-linux")
    return Path(path).resolve()


def _shared_libraries(programs: list[Path]) -> list[Path]:
    """What the loader would load for these programs, the loader included."""
    listing = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, timeout=60)
    if listing.returncode != 0:
        raise OSError(f"ldd says: {listing.stderr.strip()}")
    return [Path(path) for path in sorted(set(re.findall(r"\s(/\S+\.so\S*) \(0x", listing.stdout)))]
