"""Identify the code that a run was made with.

Python files count by their syntax trees: comments, formatting and docstrings may be edited during a run.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import subprocess
from importlib import metadata, resources
from pathlib import Path
from typing import Final

from envkit.audit.canonical_source import source_digest
from envkit.audit.certificate import content_digest
from envkit.env import Env
from envkit.errors import StoreError
from envkit.runtime.store import RunFolder
from envkit.sandbox import Lock

#: The folder of envkit itself.
_ROOT: Final = Path(__file__).parents[2]


def environment_facts(kind: type[Env], lock: Lock) -> dict[str, str]:
    """Fields of a manifest that `require_unchanged` compares.

    Args:
        kind: the environment.
        lock: what its sandboxes hold.
    """
    return {"code": code_digest(kind), "lock": lock.digest, "contents": str(lock)}


def code_digest(kind: type[Env]) -> str:
    """SHA-256 of the code that an environment's certificate is bound to, and of ``rollout.py``."""
    rollout = source_digest((_ROOT / "rollout.py").read_bytes())
    harness = "" if kind.harness is None else repr(kind.harness)
    return hashlib.sha256(f"{content_digest(kind)}{rollout}{harness}".encode()).hexdigest()


def training_code_digest() -> str:
    """SHA-256 of the code that decides what a run trains on, samples and learns."""
    warm_start = _ROOT / "runs/before_after/warm_start.py"
    code = {
        str(file.relative_to(_ROOT)): source_digest(file.read_bytes())
        for file in (*_ROOT.glob("training/**/*.py"), *_ROOT.glob("engine/**/*.py"), warm_start)
    }
    # In a checkout, this package lies outside the others' folder.
    local = resources.files("envkit.agents").joinpath("local.py").read_bytes()
    code["agents/local.py"] = source_digest(local)
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()


def require_unchanged(kind: type[Env], lock: Lock, part: RunFolder) -> None:
    """Raise if an environment's code, or what its sandboxes hold, has changed since the run began.

    Runs of older versions did not record them and pass.

    Args:
        kind: the environment.
        lock: what its sandboxes hold now.
        part: the run folder.

    Raises:
        StoreError: one has changed, so new episodes would be graded by other code than the old ones, or
            played with other packages.
    """
    if part.manifest.get("code", found := code_digest(kind)) != found:
        began = part.manifest.get("commit", "unknown")
        remedy = f"resume it with the version that it began with ({began})"
        if not kind.__module__.startswith("envkit."):
            remedy = f"put {inspect.getfile(kind)} and what it imports back as they were"
        raise StoreError(
            f"{part.path}: the code of {kind.id} has changed since the run began; {remedy}, or start a new "
            "run"
        )
    if part.manifest.get("lock", lock.digest) != lock.digest:
        nothing = "nothing beside Python"
        held, holds = part.manifest.get("contents") or nothing, str(lock) or nothing
        raise StoreError(
            f"{part.path}: sandboxes of {kind.id} held {held} when the run began, and now hold {holds}; "
            "resume it with the versions that it began with, or start a new run"
        )


def commit() -> str:
    """Return envkit's version, with the commit if envkit runs from a checkout."""
    folder, version = _ROOT.resolve(), metadata.version("envkit-rl")
    command = ("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12")
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # git is not installed or does not answer
        return version
    # An installed copy may lie in some other project's checkout.
    is_checkout = (folder.parent / ".git").exists() and described.returncode == 0
    return f"{version} {described.stdout.strip()}" if is_checkout else version
