"""Builds a sandbox's root folder from a Python interpreter: ``python3 guest_build.py FOLDER VERSION``.

It imports nothing of this package: images run it inside another root, to copy the interpreter of that one.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from py_compile import PycInvalidationMode

PYTHON = "/usr/bin/python3"
WORKSPACE = "/workspace"

#: What a program needs neither to run nor to import: third-party packages, wheels, tests, tools.
_LEFT_OUT = shutil.ignore_patterns(
    *("site-packages", "dist-packages", "ensurepip", "test", "tests", "idlelib", "tkinter", "turtledemo"),
    *("_tkinter.*", "config-*", "*.opt-1.pyc", "*.opt-2.pyc", "sitecustomize*", "usercustomize*"),
)
_ZONES = Path("/usr/share/zoneinfo")  # the data behind the standard library's `zoneinfo`


def build(root: Path) -> None:
    """Copy the running interpreter and its standard library, a shell and ``prlimit``.

    Args:
        root: a folder that is not there yet.

    Raises:
        OSError: something is missing, or there is no room.
        subprocess.SubprocessError: the loader's listing failed.
    """
    binary, library = Path(sys.executable).resolve(), Path(os.__file__).resolve().parent
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
    # Some distributions ship no bytecode, and nothing could be written beside a module later.
    compileall.compile_dir(
        standard, quiet=2, stripdir=str(root), invalidation_mode=PycInvalidationMode.TIMESTAMP
    )
    libraries = _shared_libraries([binary, *tools, *standard.glob("lib-dynload/*.so")])
    # The C library loads this one only when a thread is ended, and aborts where it is not there.
    unwinder = (path.with_name("libgcc_s.so.1") for path in libraries if path.name.startswith("libc.so"))
    for shared in (*libraries, *filter(Path.exists, unwinder)):
        shutil.copy2(shared, root / "usr/lib" / shared.name)
    if _ZONES.is_dir():
        shutil.copytree(_ZONES, root / _ZONES.relative_to("/"), symlinks=True)
    make_readable(root)


def make_readable(root: Path) -> None:
    """Let the sandbox's user read all of it, whatever the umask was here."""
    for folder, _, names in os.walk(root):
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


def main(folder: str, version: str) -> None:
    """Make the root folder, if this Python is of the version (such as ``3.13``) that is wanted."""
    found = ".".join(map(str, sys.version_info[:2]))
    if found != version:
        raise SystemExit(f"the base image holds Python {found}; expected {version}, as on the host")
    build(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
