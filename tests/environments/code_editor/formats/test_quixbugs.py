"""A bench on a folder laid out as the public QuixBugs repository is, from reading to the report.

The forty programs of QuixBugs are not part of this repository. These few have the same folders, files and
kinds of arguments, some of them much longer than generated ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.code_editor.env import grader_for
from envkit.environments.code_editor.graders.calls import CallGrader
from envkit.errors import TaskFileError
from envkit.measure.report.page import load_report
from envkit.measure.spec import AgentSpec, BenchSpec, EnvironmentSpec
from envkit.runs.benchmark.bench import Bench
from envkit.runs.benchmark.setup import start
from envkit.runtime.display import Silent
from envkit.runtime.stop import never
from envkit.sandbox import SandboxBackend

#: Longest text and list among the arguments.
LONG_TEXT, LONG_LIST = 945, 300

#: Name -> correct program, the part of it that the bug changes, the bug, and lines of [arguments, answer].
PROGRAMS: dict[str, tuple[str, str, str, list[Any]]] = {
    "break_lines": (
        "def break_lines(text, width):\n    lines = []\n    while len(text) > width:\n"
        "        lines.append(text[:width])\n        text = text[width:]\n"
        "    lines.append(text)\n    return lines\n",
        "    lines.append(text)\n    return",
        "    return",
        [[["abcde", 2], ["ab", "cd", "e"]], [["lorem ipsum " * 78 + "x" * 9, 50], []]],
    ),
    "running_max": (
        "def running_max(numbers):\n    best = []\n    for number in numbers:\n"
        "        best.append(max(number, best[-1]) if best else number)\n    return best\n",
        "max(",
        "min(",
        [[[[3, 1, 4]], [3, 3, 4]], [[list(range(LONG_LIST))], list(range(LONG_LIST))]],
    ),
    # One argument may stand without its list.
    "ones": (
        "def ones(n):\n    count = 0\n    while n:\n        n &= n - 1\n        count += 1\n"
        "    return count\n",
        "n &= n - 1",
        "n >>= 1",
        [[127, 7], [128, 1], [3005, 9]],
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "QuixBugs"
    for name in ("python_programs", "correct_python_programs", "json_testcases"):
        (root / name).mkdir(parents=True)
    for name, (right, part, bug, tests) in PROGRAMS.items():
        (root / "python_programs" / f"{name}.py").write_text(right.replace(part, bug))
        (root / "correct_python_programs" / f"{name}.py").write_text(right)
        lines = "".join(json.dumps(test) + "\n" for test in tests)
        (root / "json_testcases" / f"{name}.json").write_text(lines)
    # Programs on graphs and linked lists have tests in Python, none in JSON.
    for name in ("node", "reversed_list", "reversed_list_test"):
        (root / "python_programs" / f"{name}.py").write_text(f"def {name}(node):\n    return node\n")
        (root / "correct_python_programs" / f"{name}.py").write_text(f"def {name}(node):\n    return 1\n")
    return root


@pytest.mark.slow
def test_the_folder_runs_from_reading_to_the_report(
    folder: Path, tmp_path: Path, backend: SandboxBackend
) -> None:
    environment = EnvironmentSpec("code-editor", f"quixbugs:{folder}")
    rows = (AgentSpec("oracle", script="oracle"), AgentSpec("no-op", script="no-op"))
    spec = BenchSpec((environment,), rows, samples=1)
    run = start(tmp_path / "runs", spec, backend=backend, display=Silent(), command="envkit bench")
    bench = Bench(run, backend, Silent(), never)
    [(_, part)] = bench.parts
    assert part.manifest["left_out"] == {"without a call whose arguments are literals": 1}
    [page] = bench.run()
    solved = {row.name: [item.solved for item in row.results] for row in load_report(page.parent).rows}
    assert solved == {"oracle": [True] * len(PROGRAMS), "no-op": [False] * len(PROGRAMS)}


@pytest.mark.parametrize("seed", range(5))
def test_calls_are_drawn_for_arguments_longer_than_any_that_are_generated(folder: Path, seed: int) -> None:
    for task in CodeEditorEnv.import_tasks("quixbugs", folder).tasks:
        grader = grader_for(task)
        assert isinstance(grader, CallGrader)
        calls = grader.hidden_calls(seed, 0)
        assert len(calls) > 50
        assert calls == grader.hidden_calls(seed, 0)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_in_place_of_the_folder_is_refused(path: str) -> None:
    with pytest.raises(TaskFileError, match=f"^{path} cannot be read: .*expected a file"):
        CodeEditorEnv.import_tasks("quixbugs", Path(path))
