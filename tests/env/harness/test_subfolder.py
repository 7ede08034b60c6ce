"""A harness whose file lies in a folder of its own: its name has slashes, and no folder of a run has."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from envkit import Env
from envkit.env import registry
from envkit.env.taskfile import write_tasks
from envkit.environments.code_editor import starter_tasks
from envkit.environments.sql_desk import SqlDeskEnv
from envkit.measure.spec import AgentSpec, BenchSpec, EnvironmentSpec
from envkit.runs.before_after.plan import Plan
from envkit.runs.before_after.setup import RunSetup, parts_of
from envkit.runs.before_after.setup import start as start_training
from envkit.runs.benchmark.bench import Bench
from envkit.runs.benchmark.setup import start as start_bench
from envkit.runs.folder.machine import machine
from envkit.runs.folder.publishing import _parts
from envkit.runtime.display import Silent
from envkit.runtime.stop import never
from envkit.runtime.store import RunFolder, folder_name
from envkit.sandbox import SandboxBackend
from envkit.studies.interference.setup import arms_of
from envkit.training.config import TrainConfig

NAME = "code-editor@programs/own.toml"


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("programs").mkdir()
    Path("programs/own.toml").write_text('command = ["python3", "-c", "pass", "{prompt}"]\n')


def test_a_folder_is_named_within_its_run() -> None:
    for name in ("code-editor", "code-editor@mini-swe-agent", "code-editor@own.toml"):
        assert folder_name(name) == name
    for name in (NAME, "code-editor@/tmp/own.toml", "code-editor@a/../../x.toml", "code-editor@../x.toml"):
        assert Path("run", folder_name(name)).resolve().parent == Path("run").resolve()


def test_it_is_measured(tmp_path: Path, backend: SandboxBackend) -> None:
    write_tasks(tmp_path / "tasks.jsonl", [replace(starter_tasks()[0], split="heldout")], 0, "code-editor")
    rows = (AgentSpec("oracle", script="oracle"),)
    spec = BenchSpec((EnvironmentSpec(NAME, str(tmp_path / "tasks.jsonl")),), rows)
    run = start_bench(tmp_path / "runs", spec, backend=backend, display=Silent(), command="")
    [page] = Bench(run, backend, Silent(), never).run()
    assert page.parents[1] == run.path


def test_its_tasks_stand_in_the_folder_of_a_training_run(tmp_path: Path, backend: SandboxBackend) -> None:
    kinds: list[type[Env]] = [registry.environment(NAME), SqlDeskEnv]
    tasks = {kind: starter_tasks()[:1] for kind in kinds}
    facts = {
        "command": "",
        "commit": "",
        "model": "m",
        "model_digest": "",
        "machine": asdict(machine(1, "float32")),
    }
    plan = Plan(TrainConfig(sft_examples=0), heldout_tasks=1, samples=1)
    locks = {kind: backend.lock for kind in kinds}
    run = start_training(tmp_path / "runs", RunSetup(plan, facts, tasks, tasks, locks))
    for parts in ([*parts_of(run, kinds).values()], [*_parts(run).values()]):
        assert [part.path.parent for part in parts] == [run.path, run.path]
        assert [part.manifest["environment"] for part in parts] == [NAME, "sql-desk"]


def test_a_specialist_of_it_has_the_name_of_a_row(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "before-after", {"environments": [NAME], "plan": {"train": {}}})
    run.journal("phases").close()
    [arm] = arms_of([run.path / "checkpoints" / "step-000001"])
    assert [*arm.episodes] == [NAME]
    AgentSpec(arm.row, model="m")  # raises if it names no file
