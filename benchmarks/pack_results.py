"""Pack the raw files of a result into one archive, and delete them.

    python benchmarks/pack_results.py docs/results/NAME        # makes docs/results/NAME/raw.tar.xz
    tar -xf docs/results/NAME/raw.tar.xz -C docs/results/NAME  # unpacks it

The same files make the same bytes. Files that are already in the archive stay there, so a result can grow.
"""

from __future__ import annotations

import argparse
import io
import lzma
import tarfile
from pathlib import Path

from envkit.runtime.store import write_atomic

NAME = "raw.tar.xz"
#: Files that runs and measurements write for programs. Pages and plots stay beside the archive.
RAW = ("*.jsonl", "manifest.json", "report.json")


def packed(members: dict[str, bytes]) -> bytes:
    """Compress these files. Times and owners are left out, so that the bytes depend on the files alone."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(members):
            member = tarfile.TarInfo(name)
            member.size = len(members[name])
            archive.addfile(member, io.BytesIO(members[name]))
    return lzma.compress(raw.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def unpacked(path: Path) -> dict[str, bytes]:
    """Return an archive's files by name; none if there is no archive."""
    if not path.exists():
        return {}
    with tarfile.open(path) as archive:
        return {each.name: file.read() for each in archive if (file := archive.extractfile(each))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--also", action="append", default=[], help="another pattern of files to pack")
    parser.add_argument("--keep", action="append", default=[], help="a file that stays as it is")
    given = parser.parse_args()
    folder: Path = given.folder
    kept = {folder / name for name in (NAME, "README.md", *given.keep)}
    paths = {path for pattern in (*RAW, *given.also) for path in folder.rglob(pattern)} - kept
    new = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    write_atomic(folder / NAME, packed({**unpacked(folder / NAME), **new}))
    for path in paths:
        path.unlink()
    print(f"{folder / NAME}: {len(new)} files added, {(folder / NAME).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
