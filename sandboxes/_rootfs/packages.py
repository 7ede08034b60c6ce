"""Copies installed pure Python distributions for use in a sandbox."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from envkit.errors import SandboxUnavailable
from envkit.sandboxes._rootfs.guest_build import make_readable


def versions(packages: Sequence[str]) -> list[str]:
    """Requirements such as ``"pytest==9.0"``, sorted, without duplicates.

    Raises:
        SandboxUnavailable: a package is not installed or holds compiled code.
    """
    found = (_distribution(name) for name in sorted(set(packages)))
    return [f"{package.name}=={package.version}" for package in found]


def copy_packages(packages: Sequence[str], folder: Path) -> None:
    """Copy installed distributions into ``folder``, readable for every user.

    Raises:
        SandboxUnavailable: a package is not installed or holds compiled code.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for found in (_distribution(name) for name in sorted(set(packages))):
        for file in found.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), target)
    make_readable(folder)


def _distribution(name: str) -> Distribution:
    """An installed distribution that can be copied.

    Raises:
        SandboxUnavailable: it is not installed, does not list its files, or holds compiled code.
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
            f"package {name!r} is editable or an egg, so its files are not listed; pip install {name} "
            "without --editable"
        )
    return found
