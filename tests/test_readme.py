"""The README's programs run, and its environment is a whole one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gymnasium.utils.env_checker import check_env

from envkit.registry import sandbox_backend

BLOCKS = re.findall(
    r"^```python\n(.*?)^```$", (Path(__file__).parents[1] / "README.md").read_text(), re.M | re.S
)


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
