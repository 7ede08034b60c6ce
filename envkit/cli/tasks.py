"""Commands on task files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from envkit.cli.options import DEFAULT_ENVIRONMENT, EnvName, Json, SandboxName, proved_backend
from envkit.cli.ui import emit, interruptible, live, out
from envkit.errors import UsageError

if TYPE_CHECKING:
    from envkit.display import Display
    from envkit.sandbox import SandboxBackend
    from envkit.types import Task

app = typer.Typer(no_args_is_help=True, help="Make and look at task files.")

Output = Annotated[Path, typer.Option("-o", "--output", help="File to write; never overwritten.")]


@app.command()
def mine(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="PACKAGE...|PATH", help="Installed packages, or one checkout: ./path."),
    ],
    output: Output,
    seed: Annotated[int, typer.Option(help="Same seed, same file.")] = 0,
    split: Annotated[str, typer.Option(help="train or heldout")] = "train",
    per_function: Annotated[int, typer.Option(min=1, help="Mutants kept per function, at most.")] = 12,
    max_chars: Annotated[int, typer.Option(min=1, help="Longest function.")] = 380,
    recipe: Annotated[bool, typer.Option("--recipe", help="Write a recipe, which holds no source.")] = False,
    packages: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="PACKAGE", help="A package that the checkout's tests import; repeatable."
        ),
    ] = None,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Mine repair tasks from installed packages: real functions, one small mutation each.

    With the default options, `algorithms pydash` gives the tasks that `envkit demo` trains on.

    A folder, named with a slash as in `./project`, is mined by its own pytest suite, in sandboxes. One module
    in five is held out. Its tasks are graded by that suite, which proves less than calls do.
    """
    from envkit.environments.code_editor.tasksets import mine_packages
    from envkit.mining.difficulty import difficulty_of
    from envkit.mining.recipe import make_recipe, recipe_text
    from envkit.taskfile import digest, write_once, write_tasks

    if split not in ("train", "heldout"):
        raise UsageError(f"--split is {split!r}; expected train or heldout")
    checkout = _checkout(sources)
    if checkout is not None and recipe:
        raise UsageError("a recipe names a package's release, and a checkout has none; leave out --recipe")
    if checkout is None and packages:
        raise UsageError(
            "--with is for a checkout, such as ./project; packages are mined without their imports"
        )
    left_out: dict[str, int] = {}
    with live() as display:
        backend = proved_backend(sandbox, False, display)
        if checkout is None:
            found = mine_packages(
                sources,
                backend,
                display,
                seed=seed,
                split=split,
                per_function=per_function,
                max_chars=max_chars,
            )
        else:
            found, left_out = _mined(
                checkout,
                backend,
                display,
                seed=seed,
                split=split,
                per_function=per_function,
                max_chars=max_chars,
                packages=packages or [],
            )
    if recipe:
        made = make_recipe(found, seed=seed, per_function=per_function, max_chars=max_chars)
        write_once(output, recipe_text(made))
    else:
        write_tasks(output, found, seed=seed)
    facts = {"tasks": len(found), "functions": len({task.source for task in found}), "digest": digest(found)}
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
    for why, count in left_out.items():
        if count:
            out.print(f"left out: {count} {why}", soft_wrap=True, markup=False)


def _checkout(sources: Sequence[str]) -> Path | None:
    """The folder that is meant, where one is: whatever has a slash, for packages have none."""
    folders = [one for one in sources if "/" in one or one in (".", "..")]
    if folders and len(sources) > 1:
        raise UsageError(f"{folders[0]} is a checkout; it is mined alone, into a file of its own")
    return Path(folders[0]) if folders else None


def _mined(
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
    """A checkout's tasks in an order that is spread over functions, and what was left out."""
    from envkit.environments.code_editor.tasksets import heldout_recipe
    from envkit.mining.duplicates import fingerprints_of
    from envkit.mining.recipe import spread_order
    from envkit.mining.suite.miner import mine_checkout

    expected = 0

    def progress(done: int, total: int, tasks: int) -> None:
        nonlocal expected
        if total != expected:  # once before the mutants are chosen, and once after
            display.phase(f"mine {root}, runs of its suite", total)
            expected = total
        display.advance(done, f"{tasks} tasks")

    found = mine_checkout(
        root,
        seed=seed,
        split=split,
        backend=backend,
        per_function=per_function,
        max_chars=max_chars,
        packages=packages,
        shapes=fingerprints_of(heldout_recipe()["packages"]) if split == "train" else (),
        progress=progress,
    )
    left_out = {
        "flaky tests": len(found.flaky),
        "tests that never pass": len(found.failing),
        "functions that resemble others": len(found.duplicates),
    }
    return spread_order(found.tasks, seed), left_out


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="A recipe, from `envkit tasks mine --recipe`.")],
    output: Output,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Make the tasks of a recipe again, and refuse if they do not come out as they were."""
    from envkit.mining.recipe import build_from_recipe, read_recipe
    from envkit.taskfile import digest, write_tasks

    wanted = read_recipe(recipe)
    with live() as display:
        found = build_from_recipe(wanted, proved_backend(sandbox, False, display))
    write_tasks(output, found, seed=int(str(wanted["seed"])))
    if as_json:
        emit({"tasks": len(found), "digest": digest(found), "file": str(output)})
    else:
        out.print(f"{len(found)} tasks, digest as in the recipe -> {output}", soft_wrap=True, markup=False)


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(help="Task file; default: the environment's own.")] = None,
    env: EnvName = DEFAULT_ENVIRONMENT,
    seed: Annotated[int, typer.Option(min=0, help="Of the inputs that are drawn anew.")] = 0,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Play the oracle, which must earn 1, and the no-op, which must earn 0, on every task."""
    from envkit import registry
    from envkit.studies.validate_tasks import validate_tasks

    kind = registry.environment(env)
    given = registry.read_tasks_for(kind, file) if file is not None else None

    with live() as display, interruptible() as go_on:
        backend = proved_backend(sandbox, False, display)
        sets = (
            {str(file): given}
            if given is not None
            else {
                split: kind.make_tasks(split, sandbox=backend, display=display)
                for split in ("train", "heldout")
            }
        )
        broken = {
            name: validate_tasks(kind, tasks, backend, display, go_on, seed=seed)
            for name, tasks in sets.items()
        }
        if not go_on():
            raise UsageError("stopped before every task was checked; run it again")
    facts = [
        {
            "set": name,
            "tasks": len(tasks),
            "functions": len({task.source for task in tasks}),
            "broken": [str(one) for one in broken[name]],
        }
        for name, tasks in sets.items()
    ]
    if as_json:
        emit({"ok": not any(broken.values()), "sets": facts})
    else:
        for name, tasks in sets.items():
            functions = len({task.source for task in tasks})
            out.print(f"{name}: {len(tasks)} tasks from {functions} functions, {len(broken[name])} broken")
            for one in broken[name]:
                out.print(f"  {one}", markup=False, soft_wrap=True)
    if any(broken.values()):
        raise typer.Exit(1)
