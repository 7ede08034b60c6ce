"""A bench on a published benchmark: items that fail a control are left out and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envkit.environments.code_editor import CodeEditorEnv
from envkit.errors import SandboxError, UsageError
from envkit.measure.report.page import load_report
from envkit.measure.spec import AgentSpec, BenchSpec, EnvironmentSpec
from envkit.runs.benchmark.bench import Bench
from envkit.runs.benchmark.rescore import rescore
from envkit.runs.benchmark.setup import start
from envkit.runtime.display import Silent
from envkit.runtime.stop import never
from envkit.sandbox import SandboxBackend
from envkit.types import Task

ROWS = (AgentSpec("oracle", script="oracle"), AgentSpec("no-op", script="no-op"))


def edit(name: str, after: str, asserted: str) -> dict[str, Any]:
    return {
        "full_name": name,
        "before": "def f(x):\n    return x\n",
        "after": f"def f(x):\n    return {after}\n",
        "tests": f"assert {asserted}\n",
        "instruction_descriptive": "Change it.",
        "instruction_lazy": "do it",
        "taxonomy": {"change_kind": "adaptive", "topic": "Language"},
    }


GOOD = edit("good", "x + 1", "f(1) == 2")
IDLE = edit("idle", "x + 1", "f(1) > 0")
WRONG = edit("wrong", "x + 1", "f(1) == 3")
BOTH = edit("both", "-x", "f(1) > 0")  # the oracle's failure is the one that is named
EMPTY = edit("empty", "x + 1", "f(1)") | {"tests": "f(1)\n"}
SAID = {
    "without an assert": 1,
    "that doing nothing passes": 1,
    "whose own solution does not pass its tests": 2,
}


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def spec(path: Path, *rows: dict[str, Any], limit: int | None = None) -> BenchSpec:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = EnvironmentSpec("code-editor", f"canitedit:{path}", limit)
    return BenchSpec((environment,), ROWS, samples=1)


def test_items_that_fail_a_control_are_left_out_and_counted(tmp_path: Path, backend: SandboxBackend) -> None:
    wanted, heard = spec(tmp_path / "edits.jsonl", GOOD, IDLE, WRONG, EMPTY, BOTH), Heard()
    run = start(tmp_path, wanted, backend=backend, display=heard, command="envkit bench")
    left_out = [text for text in heard.said if "left out" in text]
    assert sorted(left_out) == sorted(
        f"canitedit:{tmp_path}/edits.jsonl: left out {many} {why}" for why, many in SAID.items()
    )
    made = Bench(run, backend, heard, never)
    [(_, part)] = made.parts
    assert part.manifest["left_out"] == SAID
    [page] = made.run()
    data = load_report(page.parent)
    assert {row.name: [item.solved for item in row.results] for row in data.rows} == {
        "oracle": [True],
        "no-op": [False],
    }
    assert {*data.warnings} == {f"Left out: {many} {why}." for why, many in SAID.items()}
    again = rescore(run, tmp_path, backend, Silent(), never, "envkit bench --rescore")
    [(_, part)] = Bench(again.run, backend, Silent(), never).parts
    assert part.manifest["left_out"] == SAID


def test_a_broken_sandbox_leaves_out_no_item(
    tmp_path: Path, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = spec(tmp_path / "edits.jsonl", GOOD)

    def broken(self: CodeEditorEnv, task: Task) -> str:
        raise SandboxError("the machine is away")

    monkeypatch.setattr(CodeEditorEnv, "setup", broken)
    with pytest.raises(SandboxError, match="oracle on canitedit/good is void: the machine is away"):
        start(tmp_path / "runs", wanted, backend=backend, display=Silent(), command="envkit bench")
    assert not (tmp_path / "runs").exists()


def test_a_limit_counts_items_of_the_file(tmp_path: Path, backend: SandboxBackend) -> None:
    wanted = spec(tmp_path / "edits.jsonl", IDLE, GOOD, WRONG, limit=2)
    run = start(tmp_path, wanted, backend=backend, display=Silent(), command="envkit bench")
    [(_, part)] = Bench(run, backend, Silent(), never).parts
    assert part.manifest["left_out"] == {"that doing nothing passes": 1}


def test_if_every_item_is_left_out_no_run_begins(tmp_path: Path, backend: SandboxBackend) -> None:
    wanted = spec(tmp_path / "edits.jsonl", IDLE, WRONG)
    with pytest.raises(UsageError, match="no tasks that code-editor can pose"):
        start(tmp_path / "runs", wanted, backend=backend, display=Silent(), command="envkit bench")
    assert not (tmp_path / "runs").exists()
