"""A bench from spec to leaderboard: every kind of agent, killed and resumed, graded again."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from api_server import USAGE, Api, Body, call, completion, refusal
from notes_env import Notes
from stops import StopWhenShown
from transformers import AutoTokenizer
from typer.testing import CliRunner

import envkit
from envkit.agents.api import ApiAgent
from envkit.agents.endpoint import Backoff
from envkit.agents.recorded import write_recorded
from envkit.cli.main import app
from envkit.env import registry
from envkit.env.authored import ActionResult
from envkit.env.taskfile import read_tasks, write_tasks
from envkit.environments.code_editor import CodeEditorEnv, starter_tasks
from envkit.environments.sql_desk import SqlDeskEnv
from envkit.errors import (
    ConfigError,
    ContractError,
    MissingExtraError,
    ModelError,
    StoreError,
    UsageError,
)
from envkit.measure.report.page import load_report, load_reports
from envkit.measure.spec import AgentSpec, BenchSpec, EnvironmentSpec
from envkit.models import ModelRef, weights_digest
from envkit.runs.benchmark.agent_factory import AgentFactory
from envkit.runs.benchmark.bench import Bench, differences
from envkit.runs.benchmark.rescore import rescore
from envkit.runs.benchmark.setup import start, with_baselines
from envkit.runtime.display import Silent
from envkit.runtime.prices import load_prices
from envkit.runtime.stop import never
from envkit.runtime.store import RunFolder
from envkit.sandbox import Contents, SandboxBackend
from envkit.types import Task

KEY = "sk-never-to-be-seen"


@pytest.fixture(scope="module")
def tasks(backend: SandboxBackend) -> Sequence[Task]:
    return SqlDeskEnv.make_tasks("heldout", sandbox=backend, display=Silent())[:6]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("model")).path


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Generator[Api]:
    monkeypatch.setenv("TEST_KEY", KEY)
    with Api() as server:
        yield server


def card(folder: Path, api: Api, **more: Any) -> str:
    """A card of the test's own server, priced as a model of the table is."""
    file = folder / "mine.toml"
    facts = {"model": "m", "base_url": api.url, "key_env": "TEST_KEY", "price": "gpt-5.6", **more}
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in facts.items()))
    return str(file)


def spec(*rows: AgentSpec, **settings: Any) -> BenchSpec:
    limits = {"samples": 1, "max_turns": 1, "max_completion_length": 64, "budget_usd": 5.0} | settings
    return BenchSpec((EnvironmentSpec("sql-desk", limit=6),), rows, **limits)


def begin(root: Path, wanted: BenchSpec, backend: SandboxBackend) -> RunFolder:
    return start(root, wanted, backend=backend, display=Silent(), command="envkit bench spec.toml")


def finish(run: RunFolder, backend: SandboxBackend) -> list[Path]:
    return Bench(run, backend, Silent(), never).run()


def solver(tasks: Sequence[Task], wrong: Sequence[str] = ()) -> Any:
    """What answers as the oracle would, but for the ids in ``wrong``."""
    prompts = {task.id: task.prompt for task in tasks}

    def say(body: Body, number: int) -> Any:
        asked = body["messages"][1]["content"]
        [task] = [task for task in tasks if prompts[task.id] in asked]
        return completion("pass" if task.id in wrong else SqlDeskEnv.oracle(task)[0])

    return say


def test_every_kind_of_agent_is_on_one_leaderboard(
    tmp_path: Path, backend: SandboxBackend, tasks: Sequence[Task], model: Path, api: Api
) -> None:
    api.begin(solver(tasks, wrong=[tasks[0].id]))
    said = {task.id: list(SqlDeskEnv.oracle(task)) for task in tasks[1:]}
    write_recorded(tmp_path / "old.jsonl", {tasks[0].id: ["pass"], **said})
    rows = (
        AgentSpec("oracle", script="oracle"),
        AgentSpec("no-op", script="no-op"),
        AgentSpec("tiny", model=str(model), samples=2, max_completion_length=4),
        AgentSpec("live", card=card(tmp_path, api)),
        AgentSpec("old", recorded=str(tmp_path / "old.jsonl")),
    )
    [page] = finish(begin(tmp_path, spec(*rows, stop_strings=("o",)), backend), backend)
    data = load_report(page.parent)
    rates = {row.name: sum(item.solved for item in row.results) / 6 for row in data.rows}
    assert rates == {"oracle": 1.0, "no-op": 0.0, "tiny": 0.0, "live": 5 / 6, "old": 5 / 6}
    origins = {row.name: row.origin for row in data.rows}
    assert [origin.kind for origin in origins.values()] == ["script", "script", "local", "live", "recorded"]
    assert (origins["live"].model, origins["live"].price) == ("m", "gpt-5.6")
    assert origins["tiny"].digest == data.model_digest
    assert (origins["tiny"].max_completion_length, origins["tiny"].stop_strings) == (4, ("o",))
    assert origins["live"].stop_strings == ()
    turns = [t.steps[0].turn for t in RunFolder.open(page.parent).trajectories("eval-tiny")]
    assert {turn.stop for turn in turns if "o" in turn.text} == {"stop"}
    assert "length" in {turn.stop for turn in turns}  # others may have drawn the end of their turn
    live = next(row for row in data.rows if row.name == "live")
    assert sum(item.prompt_tokens for item in live.results) == 6 * USAGE["prompt_tokens"]
    assert sum(item.completion_tokens for item in live.results) == 6 * USAGE["completion_tokens"]
    assert data.conditions is not None
    assert data.conditions.environment == "sql-desk"
    assert data.commit.startswith("0.")
    assert len(api.asked) == 6
    assert all(KEY not in file.read_text() for file in page.parents[1].rglob("*") if file.is_file())


def test_a_live_model_is_offered_the_tools_that_an_instance_has(
    tmp_path: Path, backend: SandboxBackend, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "environment", lambda name: Notes)
    calls = [call("add", {"text": "salt"}), call("done", {})]
    api.begin(lambda body, number: completion(None, tool_calls=[calls[number]]))
    rows = (AgentSpec("live", card=card(tmp_path, api, mode="tools")), AgentSpec("random", script="random"))
    wanted = BenchSpec((EnvironmentSpec("notes", limit=1),), rows, samples=1, max_turns=2, budget_usd=5.0)
    run = begin(tmp_path, wanted, backend)
    finish(run, backend)
    assert [each["function"]["name"] for each in api.asked[0]["tools"]] == ["add", "show", "done"]
    [part] = [page.parent for page in tmp_path.rglob("report.md")]
    [episode] = RunFolder.open(part).trajectories("eval-live")
    assert episode.steps[0].observation.startswith("Note salt.")
    assert episode.solved


def trained_with(folder: Path, **settings: Any) -> RunFolder:
    """The folder of a run that trained so."""
    run = RunFolder.create(folder, "before-after", {"plan": {"train": settings}})
    run.journal("phases").close()
    return run


@pytest.mark.parametrize(
    ("setting", "then", "now"),
    [
        ("stop_strings", ["e"], "[]"),
        ("max_context_length", 512, "0"),
        ("max_turns", 3, "1"),
        ("max_completion_length", 96, "64"),
        ("dtype", "bfloat16", "float32"),
    ],
)
def test_a_report_names_settings_that_differ_from_training(
    tmp_path: Path, setting: str, then: Any, now: str
) -> None:
    def told(trained: RunFolder) -> list[str]:
        row = AgentSpec("a", model="m", adapter=str(trained.path / "adapter"))
        factory = AgentFactory(spec(row), {"machine": {"dtype": "float32"}}, load_prices(), Silent())
        return factory.differences_from_training(spec(row).of(row), 1)

    [said] = told(trained_with(tmp_path, **{setting: then}))
    assert said == f"a was trained with {setting} {then}, and is evaluated with {now}."
    assert told(trained_with(tmp_path)) == []


def test_settings_that_differ_from_training_are_shown_when_a_model_is_loaded(
    tmp_path: Path, backend: SandboxBackend, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "envkit.runs.folder.machine.cpu_dtype", lambda say: "float32"
    )  # as the run that trained
    trained = trained_with(tmp_path, stop_strings=["e"], max_context_length=1)
    tiny.policy(ModelRef("tiny", model, weights_digest(model))).save_adapter(trained.path / "adapter")
    said: list[str] = []

    class RecordingDisplay(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    path = str(trained.path / "adapter")
    rows = (
        AgentSpec("as then", model=str(model), adapter=path, stop_strings=("e",), max_context_length=1),
        AgentSpec("otherwise", model=str(model), adapter=path),
    )
    run = begin(tmp_path, spec(*rows, max_completion_length=2, max_turns=2), backend)
    [page] = Bench(run, backend, RecordingDisplay(), never).run()
    assert [line for line in said if "trained" in line] == [
        "otherwise was trained with stop_strings ['e'], and is evaluated with [].",
        "otherwise was trained with max_context_length 1, and is evaluated with 0.",
    ]
    assert [*load_report(page.parent).warnings] == [line for line in said if "trained" in line]
    for name, longest in (("as then", 1), ("otherwise", 0)):
        [origin] = [row.origin for row in load_report(page.parent).rows if row.name == name]
        assert origin.max_context_length == longest
        later = [t.steps[1].turn.tokens for t in RunFolder.open(page.parent).trajectories(f"eval-{name}")]
        assert {tokens is not None and tokens.kept is not None for tokens in later} == {longest > 0}


def test_an_adapter_is_measured_against_its_own_base() -> None:
    rows = (
        AgentSpec("small", model="small"),
        AgentSpec("shown", model="large", shots=3),
        AgentSpec("large", model="large"),
        AgentSpec("again", model="large", temperature=0.0),
        AgentSpec("on large", model="large", adapter="a"),
        AgentSpec("greedy", model="large", adapter="a", temperature=0.0),
        AgentSpec("short", model="large", adapter="a", max_completion_length=9),
        AgentSpec("on small", model="small", adapter="b"),
        AgentSpec("on another", model="another", adapter="c"),
        AgentSpec("old", recorded="old"),
    )
    assert [(pair.row, pair.against, pair.meaning) for pair in differences(spec(*rows))] == [
        ("on large", "large", "on large against large"),
        ("greedy", "again", "greedy against again"),
        ("short", "large", "short against large"),
        ("on small", "small", "on small against small"),
    ]


#: The command line on a machine without the extra `train`.
WITHOUT_PYTORCH = (
    "import sys\n"
    "class Absent:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.partition('.')[0] in ('torch', 'transformers', 'peft', 'trl'):\n"
    "            raise ModuleNotFoundError(name)\n"
    "sys.meta_path.insert(0, Absent())\n"
    "from envkit.cli.main import main; main()"
)


def test_a_script_is_evaluated_without_pytorch(tmp_path: Path) -> None:
    words = ["bench", "--agent", "oracle", "--tasks", str(starters(tmp_path)), "--json"]
    command = [sys.executable, "-c", WITHOUT_PYTORCH, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_local_model_without_the_extra_train_is_told_so(
    tmp_path: Path, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envkit.models.reference.find_spec", lambda name: None)
    for measure in (
        lambda: begin(tmp_path / "runs", spec(AgentSpec("a", model="smollm2-135m-q4")), backend),
        lambda: envkit.evaluate("sql-desk", root=tmp_path / "runs", display="quiet"),
        lambda: envkit.bench_spec(adapters=[tmp_path]),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'envkit-rl\[train\]'"):
            measure()


def test_without_local_models_pytorch_is_not_needed(tmp_path: Path, tasks: Sequence[Task]) -> None:
    write_recorded(tmp_path / "old.jsonl", {task.id: list(SqlDeskEnv.oracle(task)) for task in tasks})
    (tmp_path / "spec.toml").write_text(
        '[[environments]]\nname = "sql-desk"\nlimit = 6\n[[agents]]\nname = "oracle"\nscript = "oracle"\n'
        '[[agents]]\nname = "old"\nrecorded = "old.jsonl"\n'
    )
    command = [sys.executable, "-c", WITHOUT_PYTORCH, "bench", "spec.toml", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "runs").iterdir()
    assert (folder / "leaderboard.html").exists()
    [data] = load_reports(folder)
    assert [sum(item.solved for item in row.results) for row in data.rows] == [6, 6, 0]  # the last is random


def test_bad_input_is_refused_before_a_run_folder_exists(
    tmp_path: Path, backend: SandboxBackend, tasks: Sequence[Task], api: Api
) -> None:
    write_recorded(tmp_path / "short.jsonl", {tasks[0].id: ["pass"]})
    (tmp_path / "unpriced").mkdir()
    (tmp_path / "cold").mkdir()
    for row, said in (
        (AgentSpec("a", card="no-such-card"), "no card is named 'no-such-card'"),
        (AgentSpec("a", card=card(tmp_path / "unpriced", api, price="no-such-model")), "no price for"),
        (AgentSpec("a", adapter=str(tmp_path)), "no adapter_config.json"),
        (AgentSpec("a", recorded="gpt-4-0613"), "no recorded outputs 'gpt-4-0613'"),
        (AgentSpec("a", recorded=str(tmp_path / "short.jsonl")), "no output for 5 of 6 tasks"),
        (AgentSpec("a", script="no-op", temperature=0.5), "leave out temperature"),
        (
            AgentSpec("a", recorded="x", max_completion_length=9, stop_strings=("x",), max_context_length=0),
            "leave out max_completion_length, stop_strings, max_context_length",
        ),
        (
            AgentSpec("a", card=card(tmp_path / "cold", api, temperature=False), temperature=0.5),
            "takes no temperature; leave it out",
        ),
    ):
        with pytest.raises(UsageError, match=said):
            begin(tmp_path / "runs", spec(row), backend)
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_played_is_found_before_tasks_are_loaded(
    tmp_path: Path, backend: SandboxBackend, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("envkit.runs.benchmark.setup.load_tasks", load)
    other = tiny.make(tmp_path / "other", "qwen2")
    tiny.policy(other).save_adapter(tmp_path / "adapter")
    adapter = AgentSpec("a", model=str(model), adapter=str(tmp_path / "adapter"))
    with pytest.raises(ModelError, match="adapter was trained on tiny-qwen2 with weights"):
        begin(tmp_path / "runs", spec(adapter), backend)
    with pytest.raises(ModelError, match="model 'mistyped': found nothing"):
        begin(tmp_path / "runs", spec(AgentSpec("a", model="mistyped")), backend)
    with pytest.raises(ConfigError, match=r"shots is 100000; environment sql-desk has \d+ train tasks"):
        begin(tmp_path / "runs", spec(AgentSpec("a", model=str(model), shots=100_000)), backend)
    assert not (tmp_path / "runs").exists()


def test_a_fault_of_the_setup_ends_the_run_before_other_rows_cost_money(
    tmp_path: Path, backend: SandboxBackend, model: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (
        AgentSpec("oracle", script="oracle"),
        AgentSpec("tiny", model=str(model)),
        AgentSpec("live", card=card(tmp_path, api)),
    )
    api.begin(lambda body, number: refusal(401, "no such key"))
    both = EnvironmentSpec("sql-desk", limit=6), EnvironmentSpec("code-editor", str(starters(tmp_path)))
    run = begin(tmp_path / "runs", replace(spec(*rows), environments=both), backend)
    said: list[str] = []

    class RecordingDisplay(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    def gone(name: str, display: object) -> None:
        raise ModelError(f"model {name!r}: found nothing")

    monkeypatch.setattr("envkit.runs.benchmark.agent_factory.resolve", gone)
    with pytest.raises(ModelError, match="found nothing"):
        Bench(run, backend, RecordingDisplay(), never).run()
    assert api.asked == []
    [data] = load_reports(run.path)
    assert [row.name for row in data.rows] == ["oracle"]
    assert any("ended early (model" in warning for warning in data.warnings)
    assert f"report: {run.path / 'sql-desk' / 'report.html'}" in said


def test_an_example_shows_the_turn_that_was_judged(
    tmp_path: Path, backend: SandboxBackend, tasks: Sequence[Task]
) -> None:
    said = {task.id: ["query(sql='SELECT 1')", *SqlDeskEnv.oracle(task)] for task in tasks}
    write_recorded(tmp_path / "old.jsonl", said)
    rows = (AgentSpec("old", recorded=str(tmp_path / "old.jsonl")),)
    [page] = finish(begin(tmp_path, spec(*rows, max_turns=2), backend), backend)
    [example] = load_report(page.parent).examples
    assert example.completion == SqlDeskEnv.oracle(tasks[0])[0]
    assert tasks[0].prompt not in example.prompt  # it shows what the query gave
    assert f"### {tasks[0].id} · old · turn 2 of 2 · PASS\n" in (page.parent / "report.md").read_text()


def test_a_refusal_of_the_provider_ends_the_run_with_a_report_and_it_resumes(
    tmp_path: Path, backend: SandboxBackend, tasks: Sequence[Task], api: Api
) -> None:
    right = solver(tasks)
    api.begin(lambda body, number: right(body, number) if number < 3 else refusal(401, "no such key"))
    rows = (AgentSpec("oracle", script="oracle"), AgentSpec("live", card=card(tmp_path, api, concurrency=1)))
    run = begin(tmp_path, spec(*rows), backend)
    with pytest.raises(UsageError, match="TEST_KEY"):
        finish(run, backend)
    [data] = load_reports(run.path)
    assert any("ended early" in text for text in data.warnings)
    assert any("live: 3 more episodes are recorded, of a batch" in text for text in data.warnings)
    # Those that ended first are no fair sample.
    assert {row.name: sum(item.solved for item in row.results) for row in data.rows} == {"oracle": 6}
    api.begin(right)
    finish(run, backend)
    [data] = load_reports(run.path)
    assert data.warnings == ()
    assert sum(item.solved for item in data.rows[1].results) == 6
    assert len(api.asked) == 3  # the others had been answered


def test_after_a_refusal_other_rows_and_environments_are_played(
    tmp_path: Path, backend: SandboxBackend, tasks: Sequence[Task], starters: dict[str, Task], api: Api
) -> None:
    api.begin(lambda body, number: refusal(401, "no such key"))
    edits = [replace(task, split="heldout") for task in list(starters.values())[:2]]
    write_tasks(tmp_path / "edits.jsonl", edits, 0)
    right = {task.id: list(SqlDeskEnv.oracle(task)) for task in tasks}
    right |= {task.id: list(CodeEditorEnv.oracle(task)) for task in edits}
    write_recorded(tmp_path / "old.jsonl", right)
    rows = (
        AgentSpec("live", card=card(tmp_path, api, concurrency=1)),
        AgentSpec("old", recorded=str(tmp_path / "old.jsonl")),
        AgentSpec("oracle", script="oracle"),
    )
    both = EnvironmentSpec("sql-desk", limit=6), EnvironmentSpec("code-editor", str(tmp_path / "edits.jsonl"))
    run = begin(tmp_path, replace(spec(*rows), environments=both), backend)
    with pytest.raises(UsageError, match="TEST_KEY"):
        finish(run, backend)
    for data in load_reports(run.path):
        many = {"sql-desk": 6, "code-editor": 2}[data.environment]
        solved = {row.name: sum(item.solved for item in row.results) for row in data.rows}
        assert solved == {"old": many, "oracle": many}
        [early] = [text for text in data.warnings if "ended early" in text]
        assert early.count("TEST_KEY") == 1


def test_a_broken_environment_does_not_end_the_others(
    tmp_path: Path, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = EnvironmentSpec("sql-desk", limit=6), EnvironmentSpec("code-editor", str(starters(tmp_path)))
    rows = (AgentSpec("oracle", script="oracle"), AgentSpec("no-op", script="no-op"))
    run = begin(tmp_path / "runs", replace(spec(*rows), environments=both), backend)

    def broken(self: SqlDeskEnv, action: str) -> ActionResult:
        raise ZeroDivisionError

    monkeypatch.setattr(SqlDeskEnv, "apply", broken)
    with pytest.raises(ContractError, match="fix the environment and start again"):
        finish(run, backend)
    found = {report.environment: report for report in load_reports(run.path)}
    assert any("fix the environment" in warning for warning in found["sql-desk"].warnings)
    assert [row.name for row in found["code-editor"].rows] == ["oracle", "no-op"]
    with pytest.raises(ContractError, match="fix the environment and start again"):
        finish(run, backend)  # resumed: nothing of it is played again
    assert [row.name for row in load_reports(run.path)[1].rows] == ["oracle"]


def test_rows_after_a_stop_by_the_user_are_not_played(tmp_path: Path, backend: SandboxBackend) -> None:
    rows = (AgentSpec("oracle", script="oracle"), AgentSpec("no-op", script="no-op"))
    run = begin(tmp_path, spec(*rows), backend)
    display = StopWhenShown(1)
    [page] = Bench(run, backend, display, display.should_stop).run()
    data = load_report(page.parent)
    assert [row.name for row in data.rows] == ["oracle"]
    assert data.warnings == ("The run ended early (stopped by the user); this is what there is.",)


def test_a_call_that_exceeds_the_budget_is_not_made(
    tmp_path: Path, backend: SandboxBackend, tasks: Sequence[Task], api: Api
) -> None:
    api.begin(solver(tasks))
    run = begin(tmp_path, spec(AgentSpec("live", card=card(tmp_path, api)), budget_usd=0.0001), backend)
    with pytest.raises(UsageError, match=r"budget of \$0.0001"):
        finish(run, backend)
    assert api.asked == []


def test_a_provider_that_does_not_answer_makes_voids_which_are_tried_again(
    tmp_path: Path,
    backend: SandboxBackend,
    tasks: Sequence[Task],
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    impatient = functools.partial(ApiAgent, backoff=Backoff(attempts=3, first_s=0.01))
    monkeypatch.setattr("envkit.runs.benchmark.agent_factory.ApiAgent", impatient)
    lost, right = tasks[2].prompt, solver(tasks)

    def say(body: Body, number: int) -> Any:
        return (
            refusal(500, "oh", retry_after="0")
            if lost in body["messages"][1]["content"]
            else right(body, number)
        )

    api.begin(say)
    run = begin(tmp_path, spec(AgentSpec("live", card=card(tmp_path, api))), backend)
    finish(run, backend)
    [row] = load_reports(run.path)[0].rows
    assert (sum(item.solved for item in row.results), sum(item.voids for item in row.results)) == (5, 1)
    api.begin(right)
    finish(run, backend)
    [row] = load_reports(run.path)[0].rows
    assert (sum(item.solved for item in row.results), sum(item.voids for item in row.results)) == (6, 0)
    assert len(api.asked) == 1


def test_a_run_with_changed_inputs_is_refused(
    tmp_path: Path, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path, spec(AgentSpec("oracle", script="oracle")), backend)
    with pytest.raises(StoreError, match="kind 'bench-part'"):
        Bench(RunFolder.open(run.path / "sql-desk"), backend, Silent(), never)
    with run.locked(), pytest.raises(StoreError, match="another process is at work"):
        finish(run, backend)
    monkeypatch.setattr("envkit.runs.folder.provenance.code_digest", lambda kind: "0ther")
    with pytest.raises(StoreError, match="code of sql-desk has changed"):
        finish(run, backend)
    monkeypatch.undo()
    with pytest.raises(
        StoreError, match="sandboxes of sql-desk held nothing beside Python when the run began"
    ):
        finish(run, backend.with_contents(Contents(("jinja2==3.1.6",))))
    file = run.path / "sql-desk" / "tasks.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0].replace('"count":6', '"count":5'), *lines[1:-1]]))
    with pytest.raises(StoreError, match="not the tasks that the run began with"):
        finish(run, backend)


def test_stored_episodes_are_graded_again_and_changes_are_named(
    tmp_path: Path, backend: SandboxBackend, tasks: Sequence[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (AgentSpec("oracle", script="oracle"), AgentSpec("no-op", script="no-op"))
    run = begin(tmp_path, spec(*rows), backend)
    finish(run, backend)
    same = rescore(run, tmp_path, backend, Silent(), never, "envkit bench --rescore")
    assert (same.episodes, same.changed) == (12, ())
    [before], [after] = load_reports(run.path), load_reports(same.run.path)
    assert after.rows == before.rows

    def fail(self: SqlDeskEnv, task: Task) -> str:
        raise KeyboardInterrupt

    setup = SqlDeskEnv.setup
    monkeypatch.setattr(SqlDeskEnv, "setup", fail)
    with pytest.raises(KeyboardInterrupt):
        rescore(run, tmp_path, backend, Silent(), never, "envkit bench --rescore")
    assert {path.parent for path in tmp_path.rglob("manifest.json") if path.parent.parent == tmp_path} == {
        run.path,
        same.run.path,
    }
    assert same.run.manifest["rescored"] == run.id

    def broken(self: SqlDeskEnv, task: Task) -> str:
        """Poses the first task as one that nobody can solve."""
        seen = setup(self, task)
        return seen if task.id != tasks[0].id else self.apply("pass").observation

    monkeypatch.setattr(SqlDeskEnv, "setup", broken)
    monkeypatch.setattr(SqlDeskEnv, "apply", _refuse_first(SqlDeskEnv.apply, tasks[0].id))
    changed = rescore(run, tmp_path, backend, Silent(), never, "envkit bench --rescore").changed
    assert [(one.agent, one.key.task, one.after) for one in changed] == [
        ("oracle", tasks[0].id, "failed, reward 0")
    ]


def test_a_resumed_and_a_regraded_bench_are_priced_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    priced: list[str | None] = []

    def board(runs: Sequence[Path], output: Path, *, machine: str | None = None, **_: Any) -> Path:
        priced.append(machine)
        return output

    monkeypatch.setattr("envkit.runs.measuring.leaderboard", board)
    wanted = spec(AgentSpec("oracle", script="oracle"))
    run = envkit.bench(wanted, machine="h100", root=tmp_path, display="quiet").run
    envkit.resume_bench(run, display="quiet")
    envkit.rescore(run, root=tmp_path, display="quiet")
    envkit.resume_bench(run, machine="cpu-2-cores", display="quiet")
    assert priced == ["h100", "h100", "h100", "cpu-2-cores"]


def test_only_what_was_played_is_graded_again(tmp_path: Path, backend: SandboxBackend) -> None:
    both = EnvironmentSpec("sql-desk", limit=6), EnvironmentSpec("code-editor", str(starters(tmp_path)))
    rows = (AgentSpec("oracle", script="oracle"), AgentSpec("enumerate", script="enumerate"))
    run = begin(tmp_path / "runs", replace(spec(*rows), environments=both), backend)
    finish(run, backend)
    said = CliRunner().invoke(app, ["bench", "--rescore", str(run.path), "--root", str(tmp_path / "again")])
    assert "0 of 12 episodes changed" in said.output
    [again] = (tmp_path / "again").iterdir()
    for folder in (run.path, again):
        assert [path.name for path in (folder / "sql-desk").glob("eval-*")] == ["eval-oracle.jsonl"]
    assert not any("ended early" in warning for each in load_reports(again) for warning in each.warnings)
    for journal in run.path.glob("sql-desk/eval-*"):
        journal.unlink()
    rescored = rescore(run, tmp_path, backend, Silent(), never, "envkit bench --rescore").run
    incomplete = {each.environment: "\n".join(each.warnings) for each in load_reports(rescored.path)}
    assert "The run ended early (as the run that is graded again had)" in incomplete["sql-desk"]
    assert "ended early" not in incomplete["code-editor"]


def _refuse_first(apply: Any, task: str) -> Any:
    def changed(self: SqlDeskEnv, action: str) -> Any:
        return apply(self, "pass" if self.task.id == task else action)

    return changed


def test_a_killed_run_resumes_with_equal_results_and_no_repeated_call(
    tmp_path: Path, backend: SandboxBackend, tasks: Sequence[Task], api: Api
) -> None:
    right, concurrency = solver(tasks, wrong=[tasks[1].id]), 2

    def slow(body: Body, number: int) -> Any:
        async def answer() -> Any:
            import asyncio

            await asyncio.sleep(0.15)
            return right(body, number)

        return answer()

    rows = (
        AgentSpec("oracle", script="oracle"),
        AgentSpec("live", card=card(tmp_path, api, concurrency=concurrency)),
    )
    whole = begin(tmp_path / "whole", spec(*rows), backend)
    api.begin(right)
    finish(whole, backend)
    asked = Counter(_question(body) for body in api.asked)
    assert set(asked.values()) == {1}

    cut = begin(tmp_path / "cut", spec(*rows), backend)
    api.begin(slow)
    program = "from envkit.cli.main import main; main()"
    command = [sys.executable, "-c", program, "bench", "--resume", str(cut.path), "--sandbox", backend.name]
    log = tmp_path / "log"
    with log.open("wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file)
    calls = cut.path / "sql-desk" / "calls-live.jsonl"
    deadline = time.monotonic() + 60
    while not (calls.exists() and calls.read_text().count('"answered"') >= 2):
        assert child.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    answered = calls.read_text().count('"answered"')
    before = list(api.asked)
    api.begin(right)
    finish(cut, backend)
    again = Counter(_question(body) for body in [*before, *api.asked])
    assert set(again) == set(asked)
    assert len(api.asked) <= 6 - answered
    assert sum(again.values()) - 6 <= concurrency
    marked = calls.read_text().count('"repeated":true')
    assert sum(again.values()) - 6 <= marked <= 2 * concurrency
    assert _timeless(cut) == _timeless(whole)


def _question(body: Body) -> str:
    return json.dumps(body["messages"])


def _timeless(run: RunFolder) -> dict[str, Any]:
    """A run's report without what time has put into it."""
    [data] = load_reports(run.path)
    rows = tuple(
        replace(
            row,
            results=tuple(replace(item, seconds=0.0) for item in row.results),
            origin=replace(row.origin, seconds=0.0),
        )
        for row in data.rows
    )
    return json.loads(replace(data, run="", phases=(), rows=rows).to_json())


def test_the_environments_baselines_are_rows_of_a_comparison(tmp_path: Path, backend: SandboxBackend) -> None:
    wanted = with_baselines(
        BenchSpec(
            (EnvironmentSpec("code-editor", str(starters(tmp_path))), EnvironmentSpec("sql-desk", limit=2)),
            (AgentSpec("oracle", script="oracle"), AgentSpec("chance", script="blind-mutant")),
            samples=2,
        )
    )
    assert [row.name for row in wanted.agents] == ["oracle", "chance", "enumerate", "random"]
    run = begin(tmp_path / "runs", wanted, backend)
    for page in Bench(run, backend, Silent(), never).run():
        report = load_report(page.parent)
        rows = {row.name: row for row in report.rows}
        if report.environment == "sql-desk":
            assert [*rows] == ["oracle", "random"]
            continue
        assert [*rows] == ["oracle", "chance", "enumerate"]
        assert {result.samples for result in rows["chance"].results} == {2}
        assert {result.samples for result in rows["enumerate"].results} == {1}


def test_long_tasks_are_left_out_before_the_limit_counts(tmp_path: Path, backend: SandboxBackend) -> None:
    file = starters(tmp_path)
    one, two, three = (task.chars for task in read_tasks(file))
    most = sorted([one, two, three])[1]
    played = EnvironmentSpec("code-editor", str(file), limit=2, max_task_chars=most)
    run = begin(tmp_path / "runs", BenchSpec((played,), (AgentSpec("oracle", script="oracle"),)), backend)
    [page] = finish(run, backend)
    kept = [size for size in (one, two, three) if size <= most]
    assert len(kept) == 2
    assert [task.chars for task in read_tasks(page.parent / "tasks.jsonl")] == kept
    assert f"Left out: 1 tasks of more than {most} characters." in load_report(page.parent).warnings


def test_shots_are_solved_train_tasks_before_the_question(
    tmp_path: Path, backend: SandboxBackend, tasks: Sequence[Task]
) -> None:
    model = tiny.make(tmp_path / "model", max_position_embeddings=4096).path
    rows = (AgentSpec("base", model=str(model)), AgentSpec("two", model=str(model), shots=2))
    played = (EnvironmentSpec("sql-desk", limit=1),)
    wanted = BenchSpec(played, rows, samples=1, max_turns=1, max_completion_length=4)
    [page] = finish(begin(tmp_path, wanted, backend), backend)
    run = RunFolder.open(page.parent)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)  # pyright: ignore[reportUnknownMemberType]

    def prompt(row: str) -> str:
        [episode] = run.trajectories(f"eval-{row}")
        tokens = episode.steps[0].turn.tokens
        assert tokens
        return str(tokenizer.decode(tokens.prompt_ids))

    shown = SqlDeskEnv.make_tasks("train", sandbox=backend, display=Silent())[:2]
    places = [prompt("two").index(SqlDeskEnv.oracle(task)[0]) for task in shown]
    assert places == sorted(places)
    with closing(SqlDeskEnv(tasks=shown, sandbox=backend)) as env:
        several_turns, _ = env.reset(options={"task": shown[0].id})
    assert several_turns not in prompt("two"), "tasks are shown as they are played, in one turn"
    assert SqlDeskEnv.oracle(tasks[0])[0] not in prompt("two")
    question = tasks[0].prompt
    assert prompt("two").index(question) > places[-1]
    assert prompt("base").startswith(prompt("two")[: prompt("base").index(question) // 2])
    descriptions = {row.name: row.description for row in load_report(page.parent).rows}
    assert descriptions["two"].endswith("untouched, shown 2 solved train tasks first")


def test_a_script_that_no_environment_has_is_refused(tmp_path: Path, backend: SandboxBackend) -> None:
    with pytest.raises(ConfigError, match=r"no script 'enumerate'; expected oracle, no-op"):
        begin(tmp_path, spec(AgentSpec("search", script="enumerate")), backend)


def starters(folder: Path) -> Path:
    found = [replace(task, split="heldout") for task in starter_tasks()[:3]]
    write_tasks(folder / "starters.jsonl", found, 0, "code-editor")
    return folder / "starters.jsonl"


def test_openings_of_the_test_tasks_are_counted(tmp_path: Path, backend: SandboxBackend) -> None:
    found = [replace(task, split="test") for task in starter_tasks()[:2]]
    write_tasks(tmp_path / "test.jsonl", found, 0, "code-editor")
    wanted = BenchSpec(
        (EnvironmentSpec("code-editor", str(tmp_path / "test.jsonl")),),
        (AgentSpec("oracle", script="oracle"),),
    )
    begin(tmp_path / "runs", wanted, backend)
    run = begin(tmp_path / "runs", wanted, backend)
    assert run.manifest["test_openings"] == {"code-editor": 2}
    [page] = Bench(run, backend, Silent(), never).run()
    assert any("as run 2 in its folder" in warning for warning in load_report(page.parent).warnings)
    other = BenchSpec(
        (EnvironmentSpec("code-editor", str(starters(tmp_path))),), (AgentSpec("oracle", script="oracle"),)
    )
    assert "test_openings" not in begin(tmp_path / "runs", other, backend).manifest
