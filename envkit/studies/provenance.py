"""By which code a run was made."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import envkit
from envkit.audit.certificate import content_digest
from envkit.env import Env
from envkit.errors import StoreError
from envkit.store import RunFolder


def code_digest(kind: type[Env]) -> str:
    """SHA-256 over what certificates of an environment are bound to, and how episodes are played."""
    rollout = Path(envkit.__file__).with_name("rollout.py").read_bytes()
    return hashlib.sha256(content_digest(kind).encode() + rollout).hexdigest()


def training_code_digest() -> str:
    """SHA-256 over the code that trains and samples: ``envkit/training`` and ``envkit/engine``."""
    root = Path(envkit.__file__).parent
    found = hashlib.sha256()
    for file in sorted((*root.glob("training/*.py"), *root.glob("engine/*.py"))):
        found.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return found.hexdigest()


def require_code(kind: type[Env], part: RunFolder) -> None:
    """Refuse to go on with code by which other episodes of the part were not graded.

    Raises:
        StoreError: it has changed since the part began; those of older versions do not say what it was.
    """
    if part.manifest.get("code", found := code_digest(kind)) != found:
        raise StoreError(f"{part.path}: the code of {kind.id} has changed since it began; cannot go on")


def commit() -> str:
    """Version of envkit, and the commit where it runs from a checkout."""
    folder = Path(envkit.__file__).resolve().parent
    asked = ("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12")
    try:
        found = subprocess.run(asked, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git, so no checkout
        return envkit.__version__
    # An installed copy may lie in some other project's checkout.
    inside = (folder.parent / ".git").exists() and found.returncode == 0
    return f"{envkit.__version__} {found.stdout.strip()}" if inside else envkit.__version__
