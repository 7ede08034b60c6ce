"""Pinned packages, downloaded into the cache to be mined; nothing is installed."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from envkit.errors import UsageError
from envkit.runtime.cache import cache_dir, cache_folder
from envkit.runtime.store import whole_folder


def fetched_folders() -> list[Path]:
    """Folders of the downloaded packages, laid out like site-packages: one for each set of pins."""
    return sorted(path for path in (cache_dir() / "packages").glob("pins-*") if path.is_dir())


def fetch(requirements: Path, say: Callable[[str], None]) -> None:
    """Download packages unless the cache holds them already.

    Args:
        requirements: a requirements file that pins every package with its hashes.
        say: called with one line before a download.

    Raises:
        UsageError: pip could not download them, or the cache cannot be written to.
    """
    pinned = hashlib.sha256(requirements.read_bytes()).hexdigest()
    folder = cache_dir() / "packages" / f"pins-{pinned[:16]}"
    with (cache_folder("packages") / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        say("downloading the packages that tasks are mined from, once")
        with whole_folder(folder) as made:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(made)]
            ended = subprocess.run(
                # Read as source, so the Python that they need does not matter.
                [*pip, "--no-deps", "--ignore-requires-python", "--require-hashes", "-r", str(requirements)],
                capture_output=True,
                text=True,
                check=False,
            )
            if ended.returncode:
                reason = ended.stderr.strip()[-400:]
                raise UsageError(f"could not download the packages that tasks are mined from: {reason}")
