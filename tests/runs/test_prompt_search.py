"""The search for a system message: what it writes, what it plays, and that it goes on where it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from said_env import SaidLetters
from typer.testing import CliRunner

import envkit
from envkit.agents.scripted import ScriptedAgent
from envkit.agents.with_system import WithSystem
from envkit.cli.main import app
from envkit.errors import ConfigError, EnvkitError, Stopped, StoreError, UsageError
from envkit.measure.spec import AgentSpec
from envkit.measure.stats import Interval
from envkit.models import resolve
from envkit.runs.results import PromptResult
from envkit.runs.tools.prompt_search import PromptFound, best_message, examples_of, read_prompt
from envkit.runs.tools.prompt_sizes import PromptSizes
from envkit.types import EpisodeKey

SIZES: dict[str, Any] = {"rounds": 2, "rewritings": 2, "tasks_per_round": 3, "checked": 3}


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("envkit.env.registry.environment", lambda name: SaidLetters)
    model = str(tiny.make(tmp_path / "model").path)
    config = {"model": model, "max_completion_length": 8}
    return {"config": config, "root": tmp_path / "runs", "display": "quiet"}


def test_another_system_message_reaches_the_agent() -> None:
    heard: list[str] = []

    class Listening:
        name = "listening"

        def __init__(self) -> None:
            self._agent = ScriptedAgent("listening", lambda *_: "an action")

        def start(self, key: EpisodeKey, system: str) -> Any:
            heard.append(system)
            return self._agent.start(key, system)

        def submit(self, session: Any, observation: str) -> None:
            self._agent.submit(session, observation)

        def collect(self) -> Any:
            return self._agent.collect()

    agent = WithSystem(Listening(), "other words")
    session = agent.start(EpisodeKey(0, 0, 0, 0, "t"), "the environment's words")
    agent.submit(session, "seen")
    assert [turn.text for _, turn in agent.collect() if not isinstance(turn, Exception)] == ["an action"]
    assert heard == ["other words"]
    assert agent.name == "listening"


def test_which_tasks_compare_messages_does_not_depend_on_what_a_message_failed() -> None:
    tasks = [f"t{number}" for number in range(24)]
    examples = examples_of(tasks)
    assert len(examples) == 6
    # The message so far failed an example and a task that compares; the new one failed only the example.
    first, second = tasks[0], tasks[1]
    so_far = {task: float(task not in (first, second)) for task in tasks}
    new = {task: float(task != first) for task in tasks}
    assert best_message({0: so_far, 1: new}, 0, tasks) == 1
    assert best_message({0: new, 1: {**new, first: 1.0}}, 0, tasks) == 0, "an example counted"
    assert best_message({0: so_far, 1: {**new, second: 0.0}}, 0, tasks) == 0
    without = {task: reward for task, reward in new.items() if task != second}
    assert best_message({0: so_far, 1: new, 2: without}, 0, tasks) == 0, "a task that is void for one counted"


def test_one_task_a_round_is_too_few() -> None:
    with pytest.raises(ConfigError, match="give 2 or more"):
        PromptSizes(tasks_per_round=1)


@pytest.mark.slow
def test_a_search_plays_its_messages_on_fresh_tasks_and_writes_the_best(options: dict[str, Any]) -> None:
    result = envkit.search_prompt("letters", **options, **SIZES)
    found = result.found
    assert found is not None
    assert found == read_prompt(result.run)
    assert (result.run / "prompt.txt").read_text() == found.system
    assert found.start == "Say it."
    written = [json.loads(line) for line in (result.run / "messages.jsonl").read_text().splitlines()]
    assert [each["round"] for each in written] == [0, 0, 1, 1]
    assert 1 <= found.messages <= 5
    assert (found.environment, found.model) == ("letters", options["config"]["model"])
    assert found.sampled_tokens > sum(each["tokens"] for each in written) > 0
    rounds = [
        {json.loads(line)["key"]["task"] for line in file.read_text().splitlines()}
        for file in sorted(result.run.glob("eval-*, message 0.jsonl"))
    ]
    assert all(len(tasks) == 3 for tasks in rounds)
    assert len(set.union(*rounds)) == 3 * len(rounds), "a task was played in two rounds"
    # Made again from what is there, nothing is played.
    before = {file: file.read_bytes() for file in result.run.glob("eval-*.jsonl")}
    again = envkit.resume_prompt_search(result.run, display="quiet")
    assert again.found == found
    assert {file: file.read_bytes() for file in result.run.glob("eval-*.jsonl")} == before


@pytest.mark.slow
def test_a_stopped_search_goes_on_to_the_same_message(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = envkit.search_prompt("letters", **options, **SIZES)
    asked = 0

    def stop_later(*_: Any) -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr("envkit.runs.tools.prompt_search.raise_if_stopped", stop_later)
        stopped = envkit.search_prompt("letters", **options, **SIZES)
    assert stopped.found is None
    with pytest.raises(StoreError, match="expected a finished run of `envkit study prompt`"):
        read_prompt(stopped.run)
    assert envkit.resume_prompt_search(stopped.run, display="quiet").found == whole.found


@pytest.mark.slow
def test_a_message_is_measured_and_compared_like_an_adapter(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = options["config"]["model"]
    digest = resolve(model).digest
    found = PromptFound("Say the letter.", "Say it.", None, 2, 9, 77, "letters", model, digest)
    run = tmp_path / "search"
    run.mkdir()
    monkeypatch.setattr("envkit.runs.tools.prompt_search.read_prompt", lambda path: found)
    shown: dict[str, Any] = {"root": tmp_path / "runs", "display": "quiet", "limit": 3, "samples": 1}
    measured = envkit.evaluate("letters", model=model, system=found.system, max_completion_length=8, **shown)
    [report] = measured.run.rglob("report.json")
    assert "with a system message of its own" in report.read_text()
    assert f'"system": "{hashlib.sha256(b"Say the letter.").hexdigest()}"' in report.read_text()
    config = {**options["config"], "sft_batch_size": 3}
    trained = envkit.sft(
        tmp_path / "adapter", environment="letters", config=config, examples=3, display="quiet"
    )
    assert trained.adapter is not None
    compared = envkit.compare_controls(
        [trained.adapter], prompts=[run], environment="letters", model=model, kl_tasks=3, **shown
    ).found
    assert compared is not None
    [row] = [row for row in compared.rows if row.control.control == "prompt"]
    assert (row.control.size_bytes, row.control.sampled_tokens) == (len("Say the letter."), 77)
    assert row.kl is not None
    assert row.kl.estimate > 0
    for other, reason in (
        (replace(found, environment="others"), "was searched on others"),
        (replace(found, model_digest="others"), "was searched with .*, not with the base"),
    ):
        monkeypatch.setattr("envkit.runs.tools.prompt_search.read_prompt", lambda path, other=other: other)
        with pytest.raises(UsageError, match=reason):
            envkit.compare_controls(
                [trained.adapter], prompts=[run], environment="letters", model=model, **shown
            )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"rounds": 0}, "rounds is 0; it must be at least 1"), ({"checked": 30}, "found 9 train tasks")],
)
def test_bad_sizes_are_refused_before_any_work(
    options: dict[str, Any], sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, UsageError), match=message):
        envkit.search_prompt("letters", **options, **{**SIZES, **sizes})
    assert not (options["root"]).exists()


def test_a_message_is_taken_if_it_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    def sentence(estimate: float, low: float, high: float) -> str:
        gain = Interval(estimate, low, high, 9)
        return PromptFound("new", "old", gain, 2, 9, 77, "letters", "m", "d").sentences[-1]

    assert sentence(0.2, 0.1, 0.3).endswith("It is taken.")
    assert sentence(0.1, -0.1, 0.3).endswith("a gain is not shown.")
    assert sentence(-0.1, -0.3, 0.1).endswith("The environment's own stays.")
    none = PromptFound("old", "old", None, 5, 9, 77, "letters", "m", "d")
    assert none.sentences[-1] == "None did better than the environment's own, which stays."


def test_a_search_is_for_a_base(options: dict[str, Any]) -> None:
    options["config"]["warm_start"] = "somewhere"
    with pytest.raises(EnvkitError, match="somewhere"):
        envkit.search_prompt("letters", **options, **SIZES)


def test_only_models_have_a_system_message() -> None:
    with pytest.raises(ConfigError, match="only a model has a system message"):
        AgentSpec("oracle", script="oracle", system="words")
    with pytest.raises(UsageError, match="takes no model; leave out system"):
        envkit.evaluate("code-editor", agent="oracle", system="words", display="quiet")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gain = Interval(0.1, 0.05, 0.2, 64)
    found = PromptFound("New \x1b[2Jwords.", "Old words.", gain, 13, 400, 9_000, "letters", "a model", "d")
    monkeypatch.setattr("envkit.runs.search_prompt", lambda *_, **__: PromptResult(tmp_path, found))
    said = CliRunner().invoke(app, ["study", "prompt"])
    assert said.exit_code == 0, said.output
    assert "New \\u001b[2Jwords." in said.stdout, "the model writes to the terminal"
    assert "0.100 [0.050, 0.200]. It is taken." in said.stdout
    data = json.loads(CliRunner().invoke(app, ["study", "prompt", "--json"]).stdout)
    assert data["found"]["system"] == "New \x1b[2Jwords."
    said = CliRunner().invoke(app, ["study", "prompt", "--resume", str(tmp_path), "--rounds", "9"])
    assert said.exit_code != 0
    assert "leave out --rounds" in str(said.exception)
    missing = CliRunner().invoke(app, ["bench", "--system", str(tmp_path / "none.txt")])
    assert missing.exit_code != 0
