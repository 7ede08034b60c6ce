"""Commands on task files: mine tasks, build them from a recipe, export and check them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from envkit.cli.help import Command
from envkit.cli.options import EnvName, Json, SandboxName, require_absent, require_at_least
from envkit.cli.output import emit, out
from envkit.errors import UsageError
from envkit.runs.common import DEFAULT_ENVIRONMENT, isolated_backend, load_tasks
from envkit.runs.rich_display import open_display
from envkit.runtime.cache import cache_dir

if TYPE_CHECKING:
    from envkit.environments.code_editor.mining.duplicates import Fingerprint
    from envkit.runtime.display import Display
    from envkit.sandbox import SandboxBackend
    from envkit.types import Task

_SEVERAL: Final = 2
#: Tasks that are named of those with the same fault.
_NAMED_TASKS: Final = 5

app = typer.Typer(no_args_is_help=True, help="Mine, build, export and check task files.")

Output = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="FILE", help="Task file to write; it must not exist."),
]


@app.command(cls=Command)
def mine(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="PACKAGE", help="Installed packages, or the folder of one project: ./path."),
    ],
    output: Output,
    seed: Annotated[int, typer.Option(metavar="SEED", help="The same seed gives the same file.")] = 0,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="train, heldout or test.")] = "train",
    per_function: Annotated[
        int, typer.Option(metavar="N", help="Tasks per function with one bug, at most.")
    ] = 2,
    several: Annotated[
        int, typer.Option(metavar="N", help="Tasks per function with two or three bugs, at most.")
    ] = _SEVERAL,
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="One task per function to write it.")
    ] = True,
    slips: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Tasks per function with a syntax error or a misspelt name, alone or beside bugs, at most.",
        ),
    ] = 0,
    max_chars: Annotated[int, typer.Option(metavar="N", help="Length of a function, at most.")] = 1200,
    half: Annotated[
        int | None, typer.Option(metavar="0|1", help="Only this half of the functions, by their names.")
    ] = None,
    unlike: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT:PATH",
            help="Leave out functions that resemble a published benchmark's. Repeat for more.",
        ),
    ] = None,
    recipe: Annotated[
        bool, typer.Option("--recipe", help="Write a recipe, which holds no source code.")
    ] = False,
    packages: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="PACKAGE", help="Package that the project's tests import. Repeat for more."
        ),
    ] = None,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Mine tasks from installed packages: real functions to repair, with one bug or several, or to write.

    A folder, written with a slash as in `./project`, is mined with its own pytest suite, in sandboxes. One
    module in five is held out. Its tasks are graded by that suite, which proves less than generated calls do.
    """
    from envkit.env.taskfile import digest, write_once, write_tasks
    from envkit.environments.code_editor.mining.difficulty import difficulty_of
    from envkit.environments.code_editor.mining.library import version_of
    from envkit.environments.code_editor.mining.miner import Wanted
    from envkit.environments.code_editor.mining.recipe import make_recipe, recipe_text
    from envkit.environments.code_editor.tasksets import (
        SPLITS,
        fetch_packages,
        mine_packages,
        pinned_packages,
    )

    require_absent(output)
    require_at_least(0, per_function=per_function, several=several, slips=slips)
    require_at_least(1, max_chars=max_chars)
    if split not in SPLITS:
        raise UsageError(f"--split is {split!r}; expected {', '.join(SPLITS)}")
    if half not in (None, 0, 1):
        raise UsageError(f"--half is {half}; expected 0 or 1")
    if not (per_function or several or write or slips):
        raise UsageError("nothing is to be mined; give --per-function, --several, --write or --slips")
    if not all(source.strip() for source in sources):
        raise UsageError("a package name is empty; expected installed packages, or a folder such as ./path")
    project = _project_folder(sources)
    if project is not None and recipe:
        raise UsageError(
            "a recipe needs a released package, and a project folder has no release; leave out --recipe"
        )
    if project is None and packages:
        raise UsageError(
            "--with is for a project folder such as ./project; packages are mined without their imports"
        )
    if project is not None and (half is not None or unlike):
        raise UsageError("--half and --unlike are for packages; leave them out with a project folder")
    if project is not None and (slips or several != _SEVERAL or not write):
        raise UsageError(
            "a project's tasks have one bug each; --several, --slips and --no-write are for packages"
        )
    if project is not None and split == "test":
        raise UsageError("--split is 'test'; a project folder has train and heldout")
    if project is not None and not per_function:
        raise UsageError("a project's tasks have one bug each; --per-function must be at least 1")
    pinned = pinned_packages()
    for package in sources if project is None else ():
        if package not in pinned:
            version_of(package)  # refuses one that is not installed
    left_out: dict[str, int] = {}
    with open_display("rich") as display:
        backend = isolated_backend(sandbox, display)
        if split == "train" or any(source in pinned for source in sources):
            fetch_packages(display)  # train tasks must not resemble the held-out ones
        if project is None:
            found = mine_packages(
                sources,
                backend,
                display,
                seed=seed,
                split=split,
                wanted=Wanted(per_function, several, write, slips),
                max_chars=max_chars,
                half=half,
                is_pinned=recipe,
                unlike=_fingerprints(unlike or ()),
            )
        else:
            found, left_out = _mine_project(
                project,
                backend,
                display,
                seed=seed,
                split=split,
                per_function=per_function,
                max_chars=max_chars,
                packages=packages or [],
            )
    if recipe:
        contents = make_recipe(found, seed=seed, max_chars=max_chars)
        write_once(output, recipe_text(contents))
    else:
        write_tasks(output, found, seed, DEFAULT_ENVIRONMENT)
    facts = {"tasks": len(found), "functions": _count_sources(found), "digest": digest(found)}
    scores = sorted(map(difficulty_of, found))
    quartiles = [round(scores[len(scores) * part // 4], 2) for part in (1, 2, 3)]
    if as_json:
        emit({**facts, "file": str(output), "difficulty": quartiles, "left_out": left_out})
        return
    out.print(
        f"{facts['tasks']} tasks from {facts['functions']} functions -> {output}",
        soft_wrap=True,
        markup=False,
    )
    out.print("difficulty, 0 to 1: quartiles {}, {}, {}".format(*quartiles), markup=False)
    for reason, count in left_out.items():
        if count:
            out.print(f"left out: {count} {reason}", soft_wrap=True, markup=False)


def _project_folder(sources: Sequence[str]) -> Path | None:
    """The project folder among the sources, if one has a slash, which no package name has.

    Raises:
        UsageError: it is not the only source.
    """
    folders = [source for source in sources if "/" in source or source in (".", "..")]
    if folders and len(sources) > 1:
        raise UsageError(f"{folders[0]} is a project folder; mine it alone, into a file of its own")
    return Path(folders[0]) if folders else None


def _mine_project(
    root: Path,
    backend: SandboxBackend,
    display: Display,
    *,
    seed: int,
    split: str,
    per_function: int,
    max_chars: int,
    packages: Sequence[str],
) -> tuple[list[Task], dict[str, int]]:
    """Mine a project folder; returns its tasks, spread over functions, and counts of what was left out."""
    from envkit.environments.code_editor.mining.duplicates import fingerprints_of
    from envkit.environments.code_editor.mining.recipe import spread_order
    from envkit.environments.code_editor.mining.suite.miner import mine_checkout
    from envkit.environments.code_editor.tasksets import heldout_packages

    phase_total = 0

    def held_out() -> Iterator[Fingerprint]:  # takes seconds, and is asked for once the project can be mined
        yield from fingerprints_of(heldout_packages())

    def progress(done: int, total: int, tasks: int) -> None:
        nonlocal phase_total
        if total != phase_total:  # the total grows once the mutants are chosen
            display.phase(f"mine {root}, runs of its suite", total)
            phase_total = total
        display.advance(done, f"{tasks} tasks")

    found = mine_checkout(
        root,
        seed=seed,
        split=split,
        backend=backend,
        per_function=per_function,
        max_chars=max_chars,
        packages=packages,
        fingerprints=held_out() if split == "train" else (),
        progress=progress,
    )
    left_out = {
        "flaky tests": len(found.flaky),
        "tests that never pass": len(found.failing),
        "functions that resemble others": len(found.duplicates),
    }
    return spread_order(found.tasks, seed), left_out


def _fingerprints(benchmarks: Sequence[str]) -> set[Fingerprint]:
    """Fingerprints of the functions in the right answers of published benchmarks.

    Raises:
        UsageError: not ``FORMAT:PATH``, or see `read_format`.
    """
    from envkit.environments.code_editor.formats import read_format
    from envkit.environments.code_editor.mining.functions import functions

    found: set[Fingerprint] = set()
    for benchmark in benchmarks:
        name, colon, path = benchmark.partition(":")
        if not colon:
            raise UsageError(
                f"--unlike is {benchmark!r}; expected FORMAT:PATH, such as debugbench:bugs.jsonl"
            )
        for task in read_format(name, Path(path)).tasks:
            found |= {function.fingerprint for function in functions(str(task.hidden["reference"]))}
    return found


def _count_sources(tasks: Sequence[Task]) -> int:
    return len({task.source for task in tasks})


@app.command(cls=Command)
def fetch() -> None:
    """Download the packages that the standard tasks are mined from, once; nothing is installed."""
    from envkit.environments.code_editor.tasksets import fetch_packages

    with open_display("rich") as display:
        fetch_packages(display)
        display.say(f"the packages are in {cache_dir()}")


@app.command(cls=Command)
def build(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A file from `envkit tasks mine --recipe`.")
    ],
    output: Output,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Build the tasks of a recipe again; fail if they differ from the original ones."""
    from envkit.env.taskfile import digest, write_tasks
    from envkit.environments.code_editor.mining.recipe import build_from_recipe, read_recipe
    from envkit.environments.code_editor.tasksets import fetch_packages, pinned_packages

    require_absent(output)
    contents = read_recipe(recipe)
    with open_display("rich") as display:
        if not pinned_packages().keys().isdisjoint(cast("Mapping[str, str]", contents["packages"])):
            fetch_packages(display)
        found = build_from_recipe(contents, isolated_backend(sandbox, display))
    write_tasks(output, found, int(str(contents["seed"])), DEFAULT_ENVIRONMENT)
    if as_json:
        emit({"tasks": len(found), "digest": digest(found), "file": str(output)})
    else:
        out.print(f"{len(found)} tasks, digest as in the recipe -> {output}", soft_wrap=True, markup=False)


@app.command(cls=Command)
def export(
    output: Output,
    env: EnvName = DEFAULT_ENVIRONMENT,
    split: Annotated[
        str, typer.Option(metavar="SPLIT", help="starter, train, heldout, or test if there is one.")
    ] = "train",
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Write an environment's own tasks to a task file, with their hidden values."""
    from envkit.env import registry
    from envkit.env.taskfile import write_tasks

    require_absent(output)
    kind = registry.environment(env)
    with open_display("rich") as display:
        found = load_tasks(kind, None, split, isolated_backend(sandbox, display), display)
    digest = write_tasks(output, found, 0, env)
    if as_json:
        emit({"tasks": len(found), "digest": digest, "file": str(output)})
    else:
        out.print(f"{len(found)} {split} tasks -> {output}", soft_wrap=True, markup=False)


@app.command(cls=Command)
def check(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="A task file. Default: the environment's own tasks."),
    ] = None,
    env: EnvName = DEFAULT_ENVIRONMENT,
    seed: Annotated[int, typer.Option(metavar="SEED", help="Seed of the hidden inputs.")] = 0,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Check tasks: the oracle must solve every task, and the no-op must earn nothing."""
    from envkit.env import registry
    from envkit.runs.benchmark.validate_tasks import faults_alike, validate_tasks, with_transcripts

    require_at_least(0, seed=seed)
    kind = registry.environment(env)
    with open_display("rich") as display:
        backend = isolated_backend(sandbox, display)
        names = {str(file): "train"} if file is not None else {split: split for split in ("train", "heldout")}
        sets = {name: load_tasks(kind, file, split, backend, display) for name, split in names.items()}
        faults = {
            name: validate_tasks(kind, tasks, backend, display, seed=seed) for name, tasks in sets.items()
        }
        faults = {
            name: with_transcripts(found, kind, sets[name], backend, seed=seed)
            for name, found in faults.items()
        }
    if as_json:
        facts = [
            {
                "set": name,
                "tasks": len(tasks),
                "sources": _count_sources(tasks),
                "broken": [str(fault) for fault in faults[name]],
                "transcripts": {
                    fault.task: [*fault.transcript] for fault in faults[name] if fault.transcript
                },
            }
            for name, tasks in sets.items()
        ]
        emit({"ok": not any(faults.values()), "sets": facts})
    else:
        for name, tasks in sets.items():
            sources = _count_sources(tasks)
            out.print(f"{name}: {len(tasks)} tasks of {sources} sources, {len(faults[name])} broken")
            for alike in faults_alike(faults[name]):
                out.print(f"  {alike[0]}", markup=False, soft_wrap=True)
                for line in alike[0].transcript:
                    out.print(f"    {line}", markup=False, soft_wrap=True)
                if others := [fault.task for fault in alike[1:]]:
                    named = ", ".join(others[:_NAMED_TASKS]) + (", ..." if len(others) > _NAMED_TASKS else "")
                    out.print(f"    likewise on {len(others)} more: {named}", markup=False, soft_wrap=True)
    if any(faults.values()):
        raise typer.Exit(1)
