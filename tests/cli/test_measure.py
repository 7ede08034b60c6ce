"""The commands that measure, as people type them: bench, leaderboard, models prices."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from api_server import Api, Body, completion
from command_line import Ended, envkit

from envkit.environments.sql_desk import SqlDeskEnv
from envkit.errors import UsageError
from envkit.measure.spec import BenchSpec
from envkit.models import DEFAULT_MODEL, SMALL_MODEL
from envkit.runs import evaluate
from envkit.runs.results import SFTResult
from envkit.runtime.display import Silent
from envkit.sandbox import SandboxBackend
from envkit.types import Task

SPEC = """
samples = 1
[[environments]]
name = "sql-desk"
limit = 4
[[agents]]
name = "oracle"
script = "oracle"
[[agents]]
name = "no-op"
script = "no-op"
"""


def found(done: Ended) -> Any:
    """The one JSON object on stdout."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def tasks(backend: SandboxBackend) -> Sequence[Task]:
    return SqlDeskEnv.make_tasks("heldout", sandbox=backend, display=Silent())[:4]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tasks: Sequence[Task]) -> Generator[Api]:
    """A provider whose model solves every task."""

    def say(body: Body, number: int) -> Any:
        [task] = [task for task in tasks if task.prompt in body["messages"][1]["content"]]
        return completion(SqlDeskEnv.oracle(task)[0])

    monkeypatch.setenv("TEST_KEY", "sk-never-to-be-seen")
    with Api() as server:
        server.begin(say)
        yield server


def write_card(folder: Path, name: str, api: Api, price: str = "gpt-5.6") -> None:
    (folder / name).write_text(
        f'model = "m"\nbase_url = "{api.url}"\nkey_env = "TEST_KEY"\nprice = "{price}"\n'
        "max_completion_tokens = 64\n"
    )


def test_a_bench_is_graded_again_and_put_on_a_leaderboard(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(SPEC)
    ran = found(envkit("bench", "spec.toml", "--json", cwd=tmp_path))
    assert [report["environment"] for report in ran["reports"]] == ["sql-desk"]
    assert (tmp_path / ran["leaderboard"]).exists()
    again = found(envkit("bench", "--rescore", ran["run"], "--json", cwd=tmp_path))
    assert again["changed"] == []
    refused = envkit("bench", "--resume", again["run"], cwd=tmp_path)
    assert refused.returncode == 2
    assert f"graded again; resume {Path(ran['run']).name} instead" in refused.stderr
    board = found(envkit("leaderboard", ran["run"], "-o", "new/board", "--json", cwd=tmp_path))
    assert (tmp_path / board["leaderboard"]).parent == tmp_path / "new" / "board"
    text = (tmp_path / "new" / "board" / "leaderboard.md").read_text()
    assert "| random |" in text, "its chance level stands beside the controls"


def test_rows_have_their_cards_names_and_their_own_prices(tmp_path: Path, api: Api) -> None:
    """Two models of one family, priced by a file of the person's own."""
    for number in ("gpt-5.1", "gpt-5.2"):
        write_card(tmp_path, f"{number}.toml", api, price="mine")
    (tmp_path / "prices.toml").write_text(
        'date = "2027-01-01"\nsource = "mine"\n[models.mine]\ninput = 1000000\noutput = 0\n'
    )
    words = ["--env", "sql-desk", "--limit", "4", "--samples", "1", "--budget-usd", "1e9", "--json"]
    cards = ["--card", "gpt-5.1.toml", "--card", "gpt-5.2.toml", "--prices", "prices.toml"]
    ran = found(envkit("bench", *cards, *words, cwd=tmp_path))
    rows = ran["reports"][0]["summary"]["arms"]
    assert [row["name"] for row in rows] == ["oracle", "no-op", "gpt-5.1", "gpt-5.2", "random"]
    assert [row["solve_rate"]["interval"]["estimate"] for row in rows] == [1.0, 0.0, 1.0, 1.0, 0.0]
    board = (tmp_path / ran["leaderboard"]).with_suffix(".csv").read_text()
    assert board.count(",20.0,") >= 2  # 20 tokens read at a dollar each, for every solved task
    assert len(api.asked) == 8
    assert {body["max_completion_tokens"] for body in api.asked} == {64}
    (tmp_path / "prices.toml").unlink()  # the run has its own copy
    again = found(envkit("bench", "--rescore", ran["run"], "--json", cwd=tmp_path))
    assert (tmp_path / again["leaderboard"]).with_suffix(".csv").read_text().count(",20.0,") >= 2
    assert len(api.asked) == 8


def test_a_budget_that_is_used_up_leaves_reports_and_can_be_raised(tmp_path: Path, api: Api) -> None:
    write_card(tmp_path, "mine.toml", api)
    spec = SPEC + '[[agents]]\nname = "mine"\ncard = "mine.toml"\n'
    (tmp_path / "spec.toml").write_text(spec)
    stopped = envkit("bench", "spec.toml", "--budget-usd", "0.0001", cwd=tmp_path)
    assert stopped.returncode == 2
    assert "budget of $0.0001 is used up" in stopped.stderr
    assert "leaderboard: " in stopped.stdout
    [run] = (tmp_path / "runs").iterdir()
    assert f"continue with: envkit bench --resume runs/{run.name}" in stopped.stdout
    assert api.asked == []
    ran = found(envkit("bench", "--resume", f"runs/{run.name}", "--budget-usd", "1", "--json", cwd=tmp_path))
    assert [row["name"] for row in ran["reports"][0]["summary"]["arms"]] == [
        "oracle",
        "no-op",
        "mine",
        "random",
    ]


class Recorded(Exception):
    """Raised instead of starting a run."""


def test_an_evaluated_model_is_named_after_its_folder_and_its_path_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[BenchSpec] = []

    def record(spec: BenchSpec, *_: object, **__: object) -> None:
        asked.append(spec)
        raise Recorded

    monkeypatch.setattr("envkit.runs.measuring.start_bench", record)
    monkeypatch.setattr("envkit.models.choice.available_bytes", lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    for name in ("step-4", "step-5"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "adapter_config.json").write_text("{}")
    (tmp_path / "runs" / "step-5" / "base.json").write_text(json.dumps({"model": SMALL_MODEL, "digest": "d"}))
    choices: list[dict[str, Any]] = [
        {},
        {"model": "owner/large"},
        {"model": "tiny"},
        {"adapter": "runs/step-4"},
        {"adapter": "runs/step-5"},
    ]
    for choice in choices:
        with pytest.raises(Recorded):
            evaluate(**choice, display="quiet")
    assert [(row.name, row.model, row.adapter) for spec in asked for row in spec.agents] == [
        (DEFAULT_MODEL, DEFAULT_MODEL, ""),
        ("large", "owner/large", ""),
        ("tiny", f"{tmp_path}/tiny", ""),
        ("step-4", DEFAULT_MODEL, f"{tmp_path}/runs/step-4"),
        ("step-5", SMALL_MODEL, f"{tmp_path}/runs/step-5"),
    ]


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("--agent oracle --limit 3", {"agent": "oracle", "limit": 3}),
        ("--model tiny --shots 2", {"model": "tiny", "shots": 2}),
        ("--system said.txt --env sql-desk", {"system": "Be brief.", "environment": "sql-desk"}),
        (
            "--agent model --adapter a --samples 9 --stop-strings x --heldout t.jsonl",
            {"adapter": Path("a"), "samples": 9, "stop_strings": ("x",), "tasks": "t.jsonl"},
        ),
    ],
)
def test_one_agent_is_measured_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, asked: dict[str, Any]
) -> None:
    given: dict[str, Any] = {}

    def record(**options: Any) -> None:
        given.update(options)
        raise UsageError("as far as this")

    monkeypatch.setattr("envkit.runs.measuring.evaluate", record)
    (tmp_path / "said.txt").write_text("Be brief.\n")
    assert "as far as this" in envkit("bench", *words.split(), "--device", "cuda", cwd=tmp_path).stderr
    common = {"agent": "model", "adapter": None, "system": "", "sandbox": "auto", "root": Path("runs")}
    del given["command"]
    assert given == common | asked | {"device": "cuda"}


def test_a_warm_start_alone_takes_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def record(output: Path, **options: Any) -> SFTResult:
        given.append((output, options))
        return SFTResult(output, (2.0, 1.0), None)

    monkeypatch.setattr("envkit.runs.sft", record)
    words = "--sft-only made --sft-examples 24 --env sql-desk --model tiny --max-task-chars 500 --json"
    made = found(envkit("train", *words.split(), cwd=tmp_path))
    assert made == {"adapter": "made", "steps": 2, "stopped": False, "first_loss": 2.0, "last_loss": 1.0}
    [(output, options)] = given
    assert output == Path("made")
    assert options == {
        "environment": "sql-desk", "config": None, "examples": 24, "tasks": None, "max_task_chars": 500,
        "model": "tiny", "sandbox": "auto",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bench",), "give one of: a spec"),
        (("bench", "spec.toml", "--limit", "3"), "leave out --limit"),
        (("bench", "spec.toml", "--max-turns", "3", "--env", "x"), "leave out --env, --max-turns"),
        (("bench", "--resume", "x", "--prices", "y"), "leave out --prices"),
        (("bench", "--resume", "x", "--root", "y"), "leave out --root"),
        (("bench", "spec.toml", "--machine", "abacus"), "no price for machine 'abacus'"),
        (("bench", "--card", "gpt-5", "--stop-strings", "x"), "stop_strings is for adapters"),
        (("bench", "--agent", "oracle", "--model", "x", "--adapter", "y"), "leave out adapter, model"),
        (("bench", "spec.toml", "--agent", "oracle"), "give one of: a spec"),
        (("bench", "--rescore", "x", "--resume", "y"), "give one of: a spec"),
        (("bench", "--env", "sql-desk"), "give one of: a spec"),
        (("bench", "--rescore", "x", "--limit", "3", "--prices", "y"), "leave out --limit, --prices"),
        (("bench", "--agent", "oracle", "--card", "gpt-5"), "measured alone; leave out --card"),
        (("bench", "--model", "x", "--budget-usd", "2"), "measured alone; leave out --budget-usd"),
        (("bench", "--system", "x", "--adapter", "y", "--adapter", "z"), "one agent has one adapter"),
        (("bench", "--system", "none.txt"), "none.txt cannot be read"),
        (("train", "--sft-only", "x", "--seed", "3", "--unsafe"), "leave out --seed, --unsafe"),
        (("train", "--sft-only", "x", "--resume", "y"), "leave out --resume"),
        (("train", "--sft-only", "x", "--env", "y", "--env", "z"), "imitates on one environment"),
        (("train", "--sft-examples", "9"), "--sft-examples is for --sft-only"),
        (("view", "x", "--rebuild", "--open"), "leave out --open"),
        (("view", "x", "--rebuild"), "no report.json there"),
        (("bench", "--card", "gpt-5", "--device", "cuda"), "device is for adapters"),
        (("bench", "--agent", "oracle", "--temperature", "0"), "leave out temperature"),
        (("bench", "--agent", "oracle", "--max-completion-length", "9"), "leave out max_completion_length"),
        (("bench", "--agent", "oracle", "--device", "cuda"), "leave out device"),
        (
            ("study", "controls", "--resume", "x", "--limit", "3", "--kl-tasks", "9"),
            "leave out --limit, --kl-tasks",
        ),
        (
            ("study", "controls", "--resume", "x", "--split", "test", "--root", "y"),
            "leave out --split, --root",
        ),
        (("study", "interference", "--resume", "x", "--merge", "none"), "leave out --merge"),
        (
            ("study", "interference", "--resume", "x", "--samples", "9", "--max-turns", "2"),
            "--samples, --max-turns",
        ),
        (("study", "prompt", "--resume", "x", "--config", "y", "--env", "z"), "leave out --config, --env"),
        (("bench", "none.toml"), "none.toml: cannot be read"),
        (("bench", "--card", "gpt-0"), "no card is named 'gpt-0'"),
        (("bench", "--resume", "nowhere"), "not a run's manifest"),
        (("leaderboard", "nowhere"), "no report.json there"),
        (("bench", "--rescore", "nowhere"), "not a run's manifest"),
        (("models", "prices", "abacus"), "no model or machine"),
        (("models", "prices", "--prices", "none.toml"), "none.toml: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    (tmp_path / "spec.toml").write_text(SPEC)
    done = envkit(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_prices_are_listed_with_date_and_source(tmp_path: Path) -> None:
    table = found(envkit("models", "prices", "gpt-4-0613", "--json", cwd=tmp_path))
    assert list(table["models"]) == ["gpt-4-0613"]
    assert table["models"]["gpt-4-0613"]["output"] == 60.0
    assert "2023" in table["models"]["gpt-4-0613"]["source"]
    shown = envkit("models", "prices", "cpu", cwd=tmp_path)
    assert "cpu-2-cores $0.05" in shown.stdout
