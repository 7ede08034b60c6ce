"""Builds a sandbox's root folder from a Python interpreter: ``python3 guest_build.py FOLDER VERSION``.

The host imports it to copy its own interpreter. Docker builds run it in a base image, to copy that image's.
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
PACKAGES, DATA = "/usr/lib/packages", "/data"  # the same as in `envkit.sandbox`

#: Files that no sandboxed program needs: third-party packages, wheels, tests, tools.
_LEFT_OUT = shutil.ignore_patterns(
    *("site-packages", "dist-packages", "ensurepip", "test", "tests", "idlelib", "tkinter", "turtledemo"),
    *("_tkinter.*", "config-*", "*.opt-1.pyc", "*.opt-2.pyc", "sitecustomize*", "usercustomize*"),
)
#: Libraries that compiled wheels expect on every Linux (PEP 600), beside those that Python itself loads. The
#: C library loads the first one when a thread ends, and aborts if it is missing.
_FOR_WHEELS = (
    *("libgcc_s.so.1", "libstdc++.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1"),
    *("libresolv.so.2", "libanl.so.1", "libnsl.so.1"),
)
#: Programs that commands of agents expect behind a shell. A machine that lacks one has sandboxes without it.
_FOR_SHELLS = (
    *("bash", "cat", "cp", "cut", "diff", "env", "find", "grep", "head", "ls", "mkdir", "mv", "nl", "rm"),
    *("sed", "sort", "tail", "touch", "tr", "uniq", "wc"),
)
#: Python runs this when it starts, unless its option -S is given.
_SITECUSTOMIZE = f"""import os, sys
if os.listdir({PACKAGES!r}): sys.path.append({PACKAGES!r})
"""
_ZONES = Path("/usr/share/zoneinfo")  # the data behind the standard library's `zoneinfo`


def build(root: Path) -> None:
    """Copy the running interpreter, its standard library, ``prlimit``, and a shell with usual programs.

    Args:
        root: the folder to create.

    Raises:
        OSError: a program or library is missing, or the disk is full.
        subprocess.SubprocessError: ``ldd`` did not end.
    """
    binary, library = Path(sys.executable).resolve(), Path(os.__file__).resolve().parent
    for folder in ("/usr/bin", "/usr/lib", "/usr/share", "/proc", "/dev", "/tmp", WORKSPACE, PACKAGES, DATA):
        (root / folder[1:]).mkdir(parents=True)
    # One flat library folder, under every name in the loader's default search path.
    for link, target in {"lib": "usr/lib", "lib64": "usr/lib", "usr/lib64": "lib", "bin": "usr/bin"}.items():
        (root / link).symlink_to(target)
    python = root / PYTHON[1:]
    shutil.copy2(binary, python)
    for alias in ("python", f"python3.{sys.version_info[1]}"):
        python.with_name(alias).symlink_to(python.name)
    tools = {name: _tool(name) for name in ("sh", "prlimit")}
    tools |= {name: _tool(name) for name in _FOR_SHELLS if shutil.which(name)}
    for name, tool in tools.items():
        shutil.copy2(tool, root / "usr/bin" / name)
    standard = root / "usr/lib" / library.name
    shutil.copytree(library, standard, ignore=_LEFT_OUT, ignore_dangling_symlinks=True)
    (standard / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    # Compiled now, because some distributions ship no bytecode and the root is read-only later.
    compileall.compile_dir(
        standard, quiet=2, stripdir=str(root), invalidation_mode=PycInvalidationMode.TIMESTAMP
    )
    libraries = _shared_libraries([binary, *tools.values(), *standard.glob("lib-dynload/*.so")])
    homes = {path.parent for path in libraries if path.name.startswith("libc.so")}
    homes |= {Path("/usr", *home.parts[1:]) for home in homes}  # where /lib is not a link to /usr/lib
    expected = (home / name for home in sorted(homes) for name in _FOR_WHEELS)
    for shared in (*libraries, *filter(Path.exists, expected)):
        shutil.copy2(shared, root / "usr/lib" / shared.name)
    if _ZONES.is_dir():
        shutil.copytree(_ZONES, root / _ZONES.relative_to("/"), symlinks=True)
    make_readable(root)


def make_readable(root: Path) -> None:
    """Make a tree readable for every user, whatever the umask."""
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
    """Shared libraries of these programs, including the loader."""
    listing = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, timeout=60)
    if listing.returncode != 0:
        raise OSError(f"ldd failed: {listing.stderr.strip()}")
    return [Path(path) for path in sorted(set(re.findall(r"\s(/\S+\.so\S*) \(0x", listing.stdout)))]


def main(folder: str, version: str) -> None:
    """Build the root folder, if this Python has the wanted version (such as ``3.13``)."""
    found = ".".join(map(str, sys.version_info[:2]))
    if found != version:
        raise SystemExit(f"the base image holds Python {found}; expected {version}, as on the host")
    build(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
