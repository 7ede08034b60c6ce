"""Recipes: describe a set of mined tasks by package, function and mutation, without third-party source."""

from __future__ import annotations

import json
import platform
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, cast

from envkit.env.hidden import read_hidden
from envkit.env.taskfile import MAX_BYTES, digest
from envkit.environments.code_editor.mining.bugs import bugs_by_id
from envkit.environments.code_editor.mining.build import build_task, calls_of
from envkit.environments.code_editor.mining.hidden import RepairHidden
from envkit.environments.code_editor.mining.library import version_of
from envkit.environments.code_editor.mining.mutations.run_variants import VariantBatch, variant_answers
from envkit.environments.code_editor.mining.package_functions import PackageFunction, package_functions
from envkit.errors import TaskFileError, UsageError
from envkit.runtime.files import read_regular_file
from envkit.sandbox import SandboxBackend
from envkit.types import JSON, Task

SCHEMA = "envkit.recipe/2"

_FIELDS: Mapping[str, type] = {
    "split": str,
    "python": str,
    "seed": int,
    "max_chars": int,
    "packages": dict,
    "digest": str,
    "trials": dict,
    "rows": list,
}

#: Functions that share one sandboxed process.
_PER_SANDBOX = 32

#: Package, qualified name, bug, indices of the killing calls, and True if search alone solves it.
_Row: TypeAlias = tuple[str, str, str, list[int], bool]


def make_recipe(tasks: Sequence[Task], *, seed: int, max_chars: int) -> dict[str, JSON]:
    """Describe mined tasks so that `build_from_recipe` makes exactly these again.

    Args:
        tasks: tasks of one split, made by `mine` with the other arguments.
        seed: as given to `mine`.
        max_chars: as given to `mine`.

    Raises:
        TaskFileError: there are no tasks.
    """
    rows: list[JSON] = []
    trials: dict[str, JSON] = {}
    for task in tasks:
        site = read_hidden(RepairHidden, task).site
        if site is None:
            raise TaskFileError(f"task {task.id} was not mined from a package; a recipe cannot describe it")
        rows.append([*task.id.split("/"), list(site.killers), task.metadata["enumerate"]])
        if site.trials:
            trials[task.source] = list(site.trials)
    versions = {(str(task.metadata["package"]), str(task.metadata["version"])) for task in tasks}
    if not tasks:
        raise TaskFileError("there are no tasks to make a recipe of")
    return {
        "schema": SCHEMA,
        "split": tasks[0].split,
        # Another version of Python may answer some calls differently, and so select other tasks.
        "python": python_version(),
        "seed": seed,
        "max_chars": max_chars,
        "packages": dict(sorted(versions)),
        "digest": digest(tasks),
        # Of functions without examples: the calls that became some.
        "trials": dict(sorted(trials.items())),
        "rows": rows,
    }


def recipe_text(recipe: Mapping[str, JSON]) -> str:
    """The recipe as a JSON file that shows one task per line."""
    rows = ",\n".join("  " + json.dumps(row) for row in cast("Sequence[JSON]", recipe["rows"]))
    trials = ",\n".join(
        f"  {json.dumps(source)}: {json.dumps(indices)}"
        for source, indices in cast("Mapping[str, JSON]", recipe["trials"]).items()
    )
    head = json.dumps({key: recipe[key] for key in recipe if key not in ("rows", "trials")}, indent=1)
    return f'{head[:-2]},\n "trials": {{\n{trials}\n }},\n "rows": [\n{rows}\n ]\n}}\n'


def read_recipe(path: Path) -> dict[str, JSON]:
    """Read a recipe file.

    Raises:
        TaskFileError: names the file, and the field where something is wrong.
    """
    try:
        recipe: object = json.loads(read_regular_file(path, MAX_BYTES))
    except OSError as error:
        raise TaskFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f"{path}: not JSON ({error}); expected a recipe") from error
    if not isinstance(recipe, dict) or cast("dict[str, JSON]", recipe).get("schema") != SCHEMA:
        raise TaskFileError(f"{path}: not a recipe; expected an object whose field 'schema' is {SCHEMA!r}")
    found = cast("dict[str, JSON]", recipe)
    for field, kind in _FIELDS.items():
        if not isinstance(found.get(field), kind):
            there = type(found[field]).__name__ if field in found else "nothing"
            raise TaskFileError(f"{path}, field {field!r}: found {there}, expected {kind.__name__}")
    for number, row in enumerate(cast("list[object]", found["rows"])):
        if not _is_row(row):
            raise TaskFileError(
                f"{path}, field 'rows': row {number} is {row!r:.60}; "
                "expected [package, function, bug, [index of a call, ...], true or false]"
            )
    return found


def _is_row(row: object) -> bool:
    fields = cast("list[object]", row) if isinstance(row, list) else []
    if len(fields) != 5 or not isinstance(fields[3], list) or type(fields[4]) is not bool:
        return False
    killers = cast("list[object]", fields[3])
    return all(type(name) is str for name in fields[:3]) and all(type(index) is int for index in killers)


def spread_order(tasks: Sequence[Task], seed: int) -> list[Task]:
    """Order tasks by seed so that every prefix is spread over functions and packages.

    The input order does not matter. One task of every function comes first, then the second ones, and so on.
    Within a round, packages take turns in proportion to their tasks.
    """
    rng = random.Random(f"order/{seed}")
    rounds: dict[tuple[int, str], list[Task]] = {}
    seen: dict[str, int] = {}
    for task in rng.sample(sorted(tasks, key=lambda one: one.id), len(tasks)):
        turn = seen.get(task.source, 0)
        seen[task.source] = turn + 1
        rounds.setdefault((turn, str(task.metadata["package"])), []).append(task)
    placed = [
        (turn, (index + 0.5) / len(some), package, task)
        for (turn, package), some in rounds.items()
        for index, task in enumerate(some)
    ]
    return [task for *_, task in sorted(placed, key=lambda one: one[:3])]


def build_from_recipe(recipe: Mapping[str, JSON], backend: SandboxBackend, workers: int = 2) -> list[Task]:
    """Make the tasks of a recipe again.

    Args:
        recipe: the result of `make_recipe` or `read_recipe`.
        backend: makes the sandboxes in which originals answer the public examples.
        workers: number of sandboxes that run in parallel.

    Raises:
        TaskFileError: another version of a package is installed, or the tasks differ from the recipe's.
        UsageError: a package is not installed.
        SandboxError: the machinery failed.
    """
    seed, split = cast("int", recipe["seed"]), str(recipe["split"])
    rows = cast("Sequence[_Row]", recipe["rows"])
    _require_versions(cast("Mapping[str, str]", recipe["packages"]))
    wanted: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        wanted.setdefault((row[0], row[1]), []).append(row)
    trials = cast("Mapping[str, Sequence[int]]", recipe["trials"])
    found = [
        (_with_examples(function, trials), some)
        for package, version in cast("Mapping[str, str]", recipe["packages"]).items()
        for function in package_functions(
            package, only={name for of, name in wanted if of == package}, version=version
        )
        if (some := wanted.get((package, function.qualname)))
    ]

    def make(some: Sequence[tuple[PackageFunction, list[_Row]]]) -> list[Task]:
        return _rebuild(some, seed, split, backend)

    chunks = [found[at : at + _PER_SANDBOX] for at in range(0, len(found), _PER_SANDBOX)]
    with ThreadPoolExecutor(workers) as pool:
        by_id = {task.id: task for some in pool.map(make, chunks) for task in some}
    names = ["/".join(row[:3]) for row in rows]
    missing = [name for name in names if name not in by_id]
    if missing:
        raise TaskFileError(
            f"recipe: {len(missing)} tasks cannot be made again, such as {missing[0]}; {_changed(recipe)} "
            "has changed, so the recipe must be made anew and everything measured with it measured again"
        )
    tasks = [by_id[name] for name in names]
    if digest(tasks) != recipe["digest"]:
        raise TaskFileError(
            f"recipe: the tasks have digest {digest(tasks)[:12]}, expected {str(recipe['digest'])[:12]}; "
            f"{_changed(recipe)} has changed, so everything measured with this recipe must be measured again"
        )
    return tasks


def _with_examples(function: PackageFunction, trials: Mapping[str, Sequence[int]]) -> PackageFunction:
    """The function with the recipe's trials as examples, if it has none of its own.

    Raises:
        TaskFileError: the recipe names other trials than there are.
    """
    chosen = trials.get(function.source)
    if chosen is None:
        return function
    try:
        return function.with_trials(chosen)
    except (IndexError, TypeError) as error:
        raise TaskFileError(f"recipe: trials of {function.source} are {chosen!r}: no such calls") from error


def python_version() -> str:
    """Python's version as recipes name it; results of calls may depend on it."""
    return ".".join(platform.python_version_tuple()[:2])


def _changed(recipe: Mapping[str, JSON]) -> str:
    """The likely cause of a difference since the recipe was made."""
    if (made := recipe["python"]) != python_version():
        return f"Python (it was made with {made}, this is {python_version()}), or the code that mines,"
    return "the code that mines"


def _require_versions(packages: Mapping[str, str]) -> None:
    for package, version in packages.items():
        version_of(package)  # another error if there is none
        try:
            version_of(package, version)
        except UsageError as error:
            raise TaskFileError(f"recipe: {error}") from None


def _rebuild(
    found: Sequence[tuple[PackageFunction, list[_Row]]], seed: int, split: str, backend: SandboxBackend
) -> list[Task]:
    calls = [calls_of(function, seed) for function, _ in found]
    batches = [
        VariantBatch(function.slice.function, [function.slice.text], some[: len(function.examples)])
        for (function, _), some in zip(found, calls, strict=True)
    ]
    tasks: list[Task] = []
    for (function, rows), some, [original] in zip(
        found, calls, variant_answers(backend, batches, 1), strict=True
    ):
        bugs = bugs_by_id(function.slice.text, function.slice.function, [row[2] for row in rows])
        for _, _, name, killers, is_enumerated in rows:
            if name in bugs:
                if not all(0 <= killer < len(some) for killer in killers):
                    raise TaskFileError(
                        f"recipe: {function.source} names the calls {killers!r}, and there are {len(some)}"
                    )
                made = build_task(function, split, bugs[name], killers, some, original)
                tasks.append(replace(made, metadata={**made.metadata, "enumerate": is_enumerated}))
    return tasks
