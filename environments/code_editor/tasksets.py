"""The standard task sets, made from frozen recipes and cached, and the mining of new ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from importlib import resources
from typing import Any, Final

from envkit.env.taskfile import read_tasks, write_tasks
from envkit.environments.code_editor.inputs.doctests import is_always_reordered
from envkit.environments.code_editor.mining.duplicates import (
    Fingerprint,
    fingerprint,
    fingerprints_of,
    is_near,
)
from envkit.environments.code_editor.mining.fetch import fetch
from envkit.environments.code_editor.mining.library import version_of
from envkit.environments.code_editor.mining.miner import Wanted, mine
from envkit.environments.code_editor.mining.package_functions import PackageFunction
from envkit.environments.code_editor.mining.recipe import (
    build_from_recipe,
    python_version,
    read_recipe,
    spread_order,
)
from envkit.errors import TaskFileError
from envkit.runtime.cache import cache_dir, cache_folder
from envkit.runtime.display import Display
from envkit.sandbox import SandboxBackend
from envkit.types import Task

#: Splits with a recipe. `README.md` has the commands that made the recipes, before any training run.
SPLITS: Final = ("train", "heldout", "test")
#: Splits to measure on, whose packages training never sees.
_MEASURED: Final = ("heldout", "test")
#: Longest function of the standard tasks, in characters.
MAX_CHARS: Final = 1200
#: Tasks per function of the standard sets.
STANDARD: Final = Wanted(single=2, several=2, write=True)


def recipe_of(split: str) -> dict[str, Any]:
    """Return the frozen recipe of a split: functions, bugs, pinned inputs, and the digest of its tasks."""
    with resources.as_file(resources.files("envkit.environments.code_editor") / f"{split}.json") as path:
        return read_recipe(path)


def heldout_packages() -> dict[str, str]:
    """Names and versions of the packages that training must not see."""
    return {name: version for split in _MEASURED for name, version in recipe_of(split)["packages"].items()}


def pinned_packages() -> dict[str, str]:
    """Names and versions of the packages that `fetch_packages` downloads."""
    text = resources.files("envkit.environments.code_editor").joinpath("packages.txt").read_text()
    return dict(re.findall(r"^([\w-]+)==(\S+)", text, re.M))


def standard_tasks(split: str, backend: SandboxBackend, display: Display) -> list[Task]:
    """Return the tasks of a split: made from its recipe at first use, then read from the cache.

    Raises:
        TaskFileError: the tasks differ from those that the recipe was made of.
        UsageError: the packages cannot be downloaded.
    """
    recipe = recipe_of(split)

    def make() -> list[Task]:
        fetch_packages(display)
        display.say(f"making the {split} tasks from their recipe, once")
        return build_from_recipe(recipe, backend)

    return _cached(split, recipe["digest"], make)


def fetch_packages(display: Display) -> None:
    """Download the pinned packages that tasks are mined from, unless the cache has them.

    Raises:
        UsageError: they cannot be downloaded.
    """
    with resources.as_file(resources.files("envkit.environments.code_editor") / "packages.txt") as pinned:
        fetch(pinned, display.say)


def mine_packages(
    packages: Sequence[str],
    backend: SandboxBackend,
    display: Display,
    *,
    seed: int,
    split: str,
    wanted: Wanted = STANDARD,
    max_chars: int = MAX_CHARS,
    half: int | None = None,
    is_pinned: bool = False,
    unlike: Collection[Fingerprint] = (),
) -> list[Task]:
    """Mine packages.

    Args:
        packages: names of installed or fetched packages.
        backend: runs originals and mutants.
        display: shows the progress.
        seed: decides inputs and choices.
        split: split of the tasks. Train tasks are made of functions that resemble no held-out one, and whose
            answers have an order.
        wanted: tasks per function.
        max_chars: longest function.
        half: 0 or 1: only this half of the functions, which their names decide; ``None`` for all.
        is_pinned: mine the versions of `pinned_packages`, as recipes do, not those that Python would import.
        unlike: functions that resemble one of these are left out.

    Returns:
        Tasks in an order in which every prefix is spread over functions and packages.
    """
    known = {*unlike, *(fingerprints_of(heldout_packages()) if split == "train" else ())}

    def unfit(subject: PackageFunction) -> bool:
        if half is not None and half_of(subject.source) != half:
            return True
        found = subject.slice
        if split == "train" and is_always_reordered(found.docstring, found.function):
            return True  # the answers may come in any order, which no stored field of a task tells
        return bool(known) and is_near(fingerprint(found.node), known)

    found: list[Task] = []
    for package in packages:
        started = False

        def progress(done: int, total: int, tasks: int, package: str = package) -> None:
            nonlocal started
            if not started:  # the number of functions is known now
                display.phase(f"mine {package}", total)
                started = True
            display.advance(done, f"{tasks} tasks")

        found += mine(
            package,
            version=pinned_packages().get(package) if is_pinned else None,
            seed=seed,
            split=split,
            backend=backend,
            wanted=wanted,
            max_chars=max_chars,
            exclude=unfit,
            progress=progress,
        )
    return spread_order(found, seed)


def half_of(source: str) -> int:
    """Return 0 or 1 for a function, by its name alone.

    >>> half_of("toolz:itertoolz.take"), half_of("toolz:itertoolz.drop")
    (1, 0)
    """
    return hashlib.sha256(source.encode()).digest()[0] % 2


#: Packages whose code decides which tasks are made, and which calls show a bug.
_TASK_CODE: Final = (
    *(
        f"{__package__}.{name}"
        for name in ("mining", "mining.mutations", "inputs", "inputs.rules", "graders")
    ),
    "envkit.sandbox.programs",
)


def _cached(name: str, recipe: str, make: Callable[[], list[Task]]) -> list[Task]:
    """Return cached tasks, or make them. The key covers the recipe, the mining code, and Python."""
    grammars = (f"{package}=={version_of(package)}" for package in ("tree-sitter", "tree-sitter-python"))
    key = hashlib.sha256("\n".join([python_version(), *grammars, recipe]).encode())
    for package in (
        "envkit.environments.code_editor.mining",
        "envkit.environments.code_editor.inputs",
        "envkit.environments.code_editor.inputs.rules",
        "envkit.environments.code_editor.graders",
    ):
        folder = resources.files(package)
        for file in sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".py")):
            key.update(folder.joinpath(file).read_bytes())
    key.update((resources.files("envkit.env") / "compare.py").read_bytes())
    path = cache_dir() / "tasks" / f"{name}-{key.hexdigest()[:16]}.jsonl"
    if path.exists():
        try:
            return read_tasks(path)
        except TaskFileError as error:
            raise TaskFileError(f"{error}; this file is a cache: delete it") from error
    cache_folder("tasks")
    tasks = make()
    write_tasks(path, tasks, 0)
    return tasks
