"""`envkit tasks mine` on a checkout: its tasks, its output and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import envkit
from shop_checkout import lay_out

from envkit.env.taskfile import read_tasks


def test_a_checkout_is_mined_by_its_own_suite(tmp_path: Path) -> None:
    lay_out(tmp_path / "shop")
    done = envkit(
        *("tasks", "mine", "./shop", "--split", "heldout", "--per-function", "1"),
        *("-o", "tasks.jsonl", "--json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    tasks = read_tasks(tmp_path / "tasks.jsonl")
    assert said["tasks"] == len(tasks) == said["functions"] == 3
    assert said["difficulty"] == sorted(said["difficulty"])
    assert said["left_out"] == {
        "flaky tests": 1,
        "tests that never pass": 1,
        "functions that resemble others": 0,
    }
    assert {task.metadata["graded_by"] for task in tasks} == {"pytest-suite"}
    header = json.loads((tmp_path / "tasks.jsonl").read_text().splitlines()[0])
    assert header["packages"] == {"shop": "2.1"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("./absent",), ("absent is no folder", "checkout")),
        (("./shop", "toolz"), ("./shop is a project folder", "mine it alone")),
        (("./shop", "--recipe"), ("--recipe", "has no release")),
        (("./shop", "--with", "no-such-package"), ("'no-such-package' is not in the package index",)),
        (("./needy",), ("src/shop/stock.py imports 'gymnasium'", "add --with gymnasium")),
        (("toolz", "--with", "gymnasium"), ("--with is for a project folder",)),
        (("toolz", "--split", "later"), ("'later'", "train, heldout, test")),
        (("./shop", "--half", "1"), ("--half", "leave them out")),
        (("./shop", "--per-function", "0"), ("--per-function must be at least 1",)),
        (("./shop", "--slips", "3"), ("--slips and --no-write are for packages",)),
        (("./shop", "--split", "test"), ("a project folder has train and heldout",)),
        (
            ("toolz", "-o", "shop/pyproject.toml/out.jsonl"),
            ("cannot be written", "no folder that you may write to"),
        ),
        (("toolz", "--half", "2"), ("--half is 2", "0 or 1")),
        (("toolz", "--per-function", "0", "--several", "0", "--no-write"), ("nothing is to be mined",)),
        (("toolz", "--unlike", "toolz"), ("--unlike is 'toolz'", "FORMAT:PATH")),
    ],
)
def test_a_checkout_that_cannot_be_mined_is_one_clear_line_and_exit_2(
    tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    lay_out(tmp_path / "shop")
    lay_out(tmp_path / "needy", {"src/shop/stock.py": "import gymnasium\n"})
    done = envkit("tasks", "mine", "-o", "out.jsonl", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "out.jsonl").exists()
