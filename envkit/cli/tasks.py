"""Commands on task files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from envkit.cli.parts import DEFAULT_ENVIRONMENT, EnvName, Json, SandboxName, proved_backend
from envkit.cli.ui import emit, interruptible, live, out
from envkit.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Make and look at task files.")

Output = Annotated[Path, typer.Option("-o", "--output", help="File to write; never overwritten.")]


@app.command()
def mine(
    packages: Annotated[list[str], typer.Argument(metavar="PACKAGE...", help="Installed Python packages.")],
    output: Output,
    seed: Annotated[int, typer.Option(help="Same seed, same file.")] = 0,
    split: Annotated[str, typer.Option(help="train or heldout")] = "train",
    per_function: Annotated[int, typer.Option(min=1, help="Mutants kept per function, at most.")] = 12,
    max_chars: Annotated[int, typer.Option(min=1, help="Longest function.")] = 380,
    recipe: Annotated[bool, typer.Option("--recipe", help="Write a recipe, which holds no source.")] = False,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Mine repair tasks from installed packages: real functions, one small mutation each.

    With the default options, `algorithms pydash` gives the tasks that `envkit demo` trains on.
    """
    from envkit.environments.code_editor.tasksets import mine_packages
    from envkit.mining.recipe import make_recipe, recipe_text
    from envkit.mining.taskfile import digest, write_once, write_tasks

    with live() as display:
        found = mine_packages(
            packages,
            proved_backend(sandbox, False, display),
            display,
            seed=seed,
            split=split,
            per_function=per_function,
            max_chars=max_chars,
        )
    if recipe:
        made = make_recipe(found, seed=seed, per_function=per_function, max_chars=max_chars)
        write_once(output, recipe_text(made))
    else:
        write_tasks(output, found, seed=seed)
    facts = {"tasks": len(found), "functions": len({task.source for task in found}), "digest": digest(found)}
    if as_json:
        emit({**facts, "file": str(output)})
    else:
        out.print(
            f"{facts['tasks']} tasks from {facts['functions']} functions -> {output}",
            soft_wrap=True,
            markup=False,
        )


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="A recipe, from `envkit tasks mine --recipe`.")],
    output: Output,
    sandbox: SandboxName = "auto",
    as_json: Json = False,
) -> None:
    """Make the tasks of a recipe again, and refuse if they do not come out as they were."""
    from envkit.mining.recipe import build_from_recipe, read_recipe
    from envkit.mining.taskfile import digest, write_tasks

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
    from envkit.mining.taskfile import read_tasks
    from envkit.studies.verify import verify

    kind = registry.environment(env)

    with live() as display, interruptible() as go_on:
        backend = proved_backend(sandbox, False, display)
        sets = (
            {str(file): read_tasks(file)}
            if file is not None
            else {
                split: kind.make_tasks(split, sandbox=backend, display=display)
                for split in ("train", "heldout")
            }
        )
        broken = {
            name: verify(kind, tasks, backend, display, go_on, seed=seed) for name, tasks in sets.items()
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
