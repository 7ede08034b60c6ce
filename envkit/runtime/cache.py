"""Find the folder for what is downloaded or made once: models, task packages, tasks, certificates."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from envkit.errors import UsageError


def cache_dir() -> Path:
    """Folder of the cache: ``$ENVKIT_CACHE`` or ``$XDG_CACHE_HOME/envkit``."""
    if explicit := os.environ.get("ENVKIT_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # as the XDG specification says
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "envkit"


def cache_folder(name: str) -> Path:
    """A folder in the cache, created if missing.

    Raises:
        UsageError: it cannot be created or written to.
    """
    path = cache_dir() / name
    try:
        # Sandboxes keep files in it too, and refuse a folder that a group can write to, as one made with the
        # umask 002.
        cache_dir().mkdir(mode=0o755, parents=True, exist_ok=True)
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UsageError(
            f"cannot write to the cache {path}: {error.strerror}; set ENVKIT_CACHE to a writable folder"
        ) from error
