"""Pinned packages, downloaded into the cache to be mined; nothing is installed."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from envkit.cache import cache_dir, cache_folder
from envkit.errors import UsageError
from envkit.store import whole_folder

_STAMP = "requirements.sha256"


def fetched_folder() -> Path:
    """Folder of the downloaded packages, laid out like site-packages; it may not exist."""
    return cache_dir() / "packages" / "site"


def fetch(requirements: Path, say: Callable[[str], None]) -> None:
    """Download packages unless the cache holds them already.

    Args:
        requirements: a requirements file that pins every package with its hashes.
        say: called with one line before a download.

    Raises:
        UsageError: pip could not download them, or the cache cannot be written to.
    """
    folder, pinned = fetched_folder(), hashlib.sha256(requirements.read_bytes()).hexdigest()
    with (cache_folder("packages") / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _STAMP).exists() and (folder / _STAMP).read_text() == pinned:
            return
        say("downloading the packages that tasks are mined from (1 MB), once")
        shutil.rmtree(folder, ignore_errors=True)
        with whole_folder(folder) as made:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(made)]
            ended = subprocess.run(
                [*pip, "--no-deps", "--require-hashes", "--requirement", str(requirements)],
                capture_output=True,
                text=True,
                check=False,
            )
            if ended.returncode:
                reason = ended.stderr.strip()[-400:]
                raise UsageError(f"could not download the packages that tasks are mined from: {reason}")
            (made / _STAMP).write_text(pinned)
