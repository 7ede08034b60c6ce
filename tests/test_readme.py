"""The README's programs run, its environment is a whole one, and every command of the pages is one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from gymnasium.utils.env_checker import check_env

from envkit.cli.main import app
from envkit.registry import sandbox_backend

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/results/README.md")),
    *sorted(ROOT.glob("environments/**/README.md")),
]


def commands(page: str) -> list[str]:
    """The lines of a page's shell blocks that call envkit, and what its sentences say of it in backticks."""
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S))
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)
    return [
        *re.findall(r"^(?:\S+/)?envkit (.*)$", blocks, re.M),
        *(" ".join(span.split()) for span in re.findall(r"`envkit\s([^`]*)`", prose)),
    ]


def parsed(words: Sequence[str]) -> list[str]:
    """What no command of envkit's takes of these words; nothing is run, and no value is looked at."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("envkit", [], resilient_parsing=True)
    while hasattr(command, "commands"):
        first, *words = words
        command = command.commands[first]
        context = command.make_context(first, [], parent=context, resilient_parsing=True)
    context.resilient_parsing = False  # an option that is not there is an error
    _, left, _ = command.make_parser(context).parse_args([*words])
    return left


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_command_of_a_page_is_one(page: Path) -> None:
    for line in commands(page.read_text()):
        assert parsed(shlex.split(line, comments=True)) == [], line


def test_a_command_that_is_none_is_found() -> None:
    page = "```sh\nenvkit play a b  # two\n.venv/bin/envkit eval --no-such 1\n```\nSee `envkit\nno-such x`."
    two, option, command = (shlex.split(line, comments=True) for line in commands(page))
    assert parsed(two) == ["b"]
    with pytest.raises(Exception, match="No such option"):
        parsed(option)
    with pytest.raises(KeyError):
        parsed(command)


def test_every_program_runs() -> None:
    assert len(BLOCKS) == 2
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_environment_in_one_file_is_a_whole_one() -> None:
    [block] = [block for block in BLOCKS if "class Analyst" in block]
    assert len([line for line in block.split("\n") if line.strip()]) <= 40
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), names)
    kind = names["Analyst"]
    tasks = kind.make_tasks("train")
    assert tasks == kind.make_tasks("train")
    assert not {task.files["table.csv"] for task in tasks} & {
        task.files["table.csv"] for task in kind.make_tasks("heldout")
    }
    env = kind(tasks=tasks, sandbox=sandbox_backend())
    check_env(env, skip_render_check=True)
    right = {task.id: task.hidden["total"] for task in tasks}
    rows = "csv.DictReader(open('table.csv'))"
    program = f"import csv\nprint(sum(int(row['price']) for row in {rows} if row['item'] == 'A'))"
    for off, earned in ((0, 1.0), (1, 0.0)):
        seen, info = env.reset(seed=1)
        assert "run(code: str)  Run a Python program" in seen
        assert env.step(f"run\n```python\n{program}\n```")[0] == f"{right[info['task']]}\n"
        _, reward, terminated, _, _ = env.step(f"answer({right[info['task']] + off})")
        assert (reward, terminated) == (earned, True)
    env.close()
