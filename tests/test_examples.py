"""The examples run unchanged and stay within their line limits."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env

from envkit.sandbox import SandboxBackend

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    return lambda name: importlib.import_module(f"examples.{name}")


@pytest.mark.parametrize(("name", "lines"), [("analyst", 40), ("rl_loop", 80)])
def test_an_example_is_short(name: str, lines: int) -> None:
    assert len([line for line in (FOLDER / f"{name}.py").read_text().split("\n") if line.strip()]) <= lines


def test_the_analyst_is_a_whole_environment(load: Any, backend: SandboxBackend) -> None:
    kind = load("analyst").Analyst
    tasks = kind.make_tasks("train")
    assert tasks == kind.make_tasks("train")
    assert not {task.files["table.csv"] for task in tasks} & {
        task.files["table.csv"] for task in kind.make_tasks("heldout")
    }
    env = kind(tasks=tasks, sandbox=backend)
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


@pytest.mark.slow
@pytest.mark.model
def test_the_loop_takes_steps(load: Any) -> None:
    rewards = load("rl_loop").main(steps=2)
    assert len(rewards) == 2
    assert all(0 <= reward <= 1 for reward in rewards)
