"""The standard task sets: mined once, cached, checked by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from envkit.mining.miner import MINER_VERSION, mine
from envkit.mining.library import version_of
from envkit.mining.recipe import build_from_recipe, read_recipe
from envkit.mining.taskfile import read_tasks, write_tasks
from envkit.models import cache_dir
from envkit.sandbox import SandboxBackend
from envkit.studies.display import Display
from envkit.types import Task

#: Training never sees another package's code.
TRAIN_PACKAGES = ("algorithms", "pydash")

TRAIN_SEED = 0


def mine_packages(
    packages: Sequence[str],
    backend: SandboxBackend,
    display: Display,
    *,
    seed: int,
    split: str,
    per_function: int,
) -> list[Task]:
    """Mine several packages with a progress display."""
    found: list[Task] = []
    for package in packages:
        display.phase(f"mine {package}", 1)
        found += mine(package, seed=seed, split=split, backend=backend, per_function=per_function)
        display.advance(1, f"{len(found)} tasks")
    return found


def standard_train(backend: SandboxBackend, display: Display) -> list[Task]:
    return []


def standard_heldout(backend: SandboxBackend, display: Display) -> list[Task]:
    return []
