"""Wheels and source distributions made by tests, and a folder of them in the place of a package index."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path


def add_wheel(
    folder: Path,
    name: str,
    files: Mapping[str, str],
    *,
    version: str = "1.0",
    requires: Sequence[str] = (),
    modes: Mapping[str, int] | None = None,
    tag: str = "py3-none-any",
    scripts: str = "",
) -> Path:
    """Write a wheel.

    Args:
        folder: where.
        name: of the package.
        files: path in the wheel -> text.
        version: of the package.
        requires: packages that it depends on.
        modes: path in the wheel -> mode bits of its entry, with the file type.
        tag: the interpreters that it is for.
        scripts: content of ``entry_points.txt``.
    """
    path, about = folder / f"{name}-{version}-{tag}.whl", f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    whole = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
        **({f"{about}/entry_points.txt": scripts} if scripts else {}),
    }
    whole[f"{about}/RECORD"] = "".join(f"{one},,\n" for one in (*whole, f"{about}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for one, text in whole.items():
            entry = zipfile.ZipInfo(one)
            entry.external_attr = (modes or {}).get(one, 0o100644) << 16
            archive.writestr(entry, text)
    return path


def add_source(folder: Path, name: str, setup: str, version: str = "1.0") -> Path:
    """Write a source distribution whose ``setup.py`` is ``setup``."""
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file, text in {"setup.py": setup, "PKG-INFO": f"Name: {name}\nVersion: {version}\n"}.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{file}")
            entry.size = len(text.encode())
            archive.addfile(entry, BytesIO(text.encode()))
    return path
