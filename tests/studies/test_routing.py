"""`envkit study specialists`, from the episodes of training runs to a file that decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sample_runs
import tiny
from served import save_adapter
from typer.testing import CliRunner

import envkit
from envkit.cli.main import app
from envkit.env.taskfile import write_tasks
from envkit.errors import EnvkitError, UsageError
from envkit.models import ModelRef
from envkit.runtime.store import RunFolder, folder_name, trajectory_to_json
from envkit.serving.decoding.router import AUTO, read_router
from envkit.studies.specialists.router import first_prompts
from envkit.training.config import TrainConfig, to_mapping
from envkit.types import Task, Tokens

#: PEFT uses what transformers warns of.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

TASKS, PER_SOURCE = 120, 2
#: First token of each specialist's prompts; its others are near.
FIRST = {"red": 100, "blue": 900}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return tiny.make(tmp_path_factory.mktemp("routed") / "model")


def prompt(name: str, number: int) -> tuple[int, ...]:
    return tuple(FIRST[name] + (number * 7 + place * 13) % 60 for place in range(12 + number % 5))


def make_run(folder: Path, name: str, model: ModelRef, tasks: int = TASKS) -> Path:
    """A training run with an adapter and two episodes of each task."""
    manifest = {
        "kind": "before-after",
        "environment": name,
        "environments": [name],
        "plan": {"train": to_mapping(TrainConfig(model=str(model.path)))},
    }
    run = RunFolder.create(folder, name, manifest)
    run.journal("phases").append({"phase": "done"})
    made = [
        Task(f"{number}", "train", "Do it.", {}, {"source": f"source {number // PER_SOURCE}"})
        for number in range(tasks)
    ]
    write_tasks(run.path / "tasks" / "train.jsonl", made, 0)
    with run.journal("episodes") as journal:
        for number in range(tasks):
            for row in range(2):
                tokens = Tokens(prompt(name, number), (5,), (-0.5,))
                episode = sample_runs.played(
                    str(number), turns=[sample_runs.turn(tokens=tokens)], row=row, step=1
                )
                journal.append({"phase": "rl", **trajectory_to_json(episode), "env": name})
    save_adapter(model.path, run.path / "checkpoints" / "step-000001", 0)
    return run.path


@pytest.fixture(scope="module")
def runs(model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_run(tmp_path_factory.mktemp("runs"), name, model) for name in FIRST}


def test_prompts_are_those_of_the_episodes_one_for_each_task(runs: dict[str, Path]) -> None:
    found = first_prompts(runs["red"] / "checkpoints" / "step-000001", 50, 0)
    assert len(found) == 50
    everything = first_prompts(runs["red"] / "checkpoints" / "step-000001", 1000, 1)
    assert {one.ids for one in everything} == {prompt("red", number) for number in range(TASKS)}
    assert {one.source for one in everything} == {f"source {n}" for n in range(TASKS // PER_SOURCE)}


def test_prompts_of_a_run_of_several_environments_are_found(model: ModelRef, tmp_path: Path) -> None:
    """Its tasks and episodes stand beside each other, and an episode names its environment."""
    environments = {"red": "red@programs/own.toml", "blue": "blue"}
    manifest: dict[str, Any] = {"environments": [*environments.values()], "plan": {}}
    run = RunFolder.create(tmp_path, "several", manifest)
    run.journal("phases").append({"phase": "done"})
    for name, environment in environments.items():
        task = Task("0", "train", "Do it.", {}, {"source": f"{name} thing"})
        write_tasks(run.path / folder_name(environment) / "tasks" / "train.jsonl", [task], 0)
        with run.journal("episodes") as journal:
            turn = sample_runs.turn(tokens=Tokens(prompt(name, 0), (5,), (-0.5,)))
            episode = sample_runs.played(f"{environment} 0", turns=[turn], row=0, step=1)
            journal.append({"phase": "rl", **trajectory_to_json(episode), "env": environment})
    found = first_prompts(run.path / "checkpoints" / "step-000001", 50, 0)
    assert {one.source: one.ids for one in found} == {f"{name} thing": prompt(name, 0) for name in FIRST}


def test_a_router_is_trained_measured_and_written(
    runs: dict[str, Path], model: ModelRef, tmp_path: Path
) -> None:
    file = tmp_path / "router"
    named = [f"{name}={run}" for name, run in runs.items()]
    said = CliRunner().invoke(
        app, ["study", "specialists", *named, "-o", str(file), "--tokens", "9", "--json"]
    )
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert found["router"] == str(file)
    assert found["bytes"] == file.stat().st_size
    study = found["study"]
    assert (study["layers"], study["all_layers"], study["tokens"]) == (1, 2, 9)
    # 120 tasks: 72 to learn from, 24 to set the limit, 24 to measure on.
    assert study["learned"] == 2 * 96
    for sent in study["sent"]:
        assert sum(sent["counts"].values()) == 24
        assert sent["counts"][sent["name"]] >= 20
        assert sent["unknown"]["estimate"] > 0.6
    router = read_router(file)
    assert (router.names, router.layers, router.tokens) == (("red", "blue"), 1, 9)
    assert router.base_digest == model.digest


def test_the_command_says_what_the_router_does_and_costs(runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["study", "specialists", f"red={runs['red']}", "-o", str(tmp_path / "router"), "--layers", "2"]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    text = " ".join(said.stdout.split())
    assert "with 2 of 2 layers" in text
    assert "that takes two" in text
    assert "prompts of" in text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([AUTO], "'auto' is the router's own model id"),
        (["a/b"], "adapter name 'a/b'"),
        ([], "at least one specialist"),
    ],
)
def test_names_that_no_model_can_have_are_refused(
    runs: dict[str, Path], tmp_path: Path, names: list[str], message: str
) -> None:
    with pytest.raises(EnvkitError, match=message):
        envkit.train_router({name: runs["red"] for name in names}, tmp_path / "router", display="quiet")


def test_bad_input_is_refused_before_a_model_is_loaded(
    runs: dict[str, Path], model: ModelRef, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(UsageError, match="taken exists; name another file"):
        envkit.train_router(runs, taken, display="quiet")
    assert taken.read_text() == "mine"
    alone = save_adapter(model.path, tmp_path / "alone", 1)
    with pytest.raises(UsageError, match="alone is in no training run"):
        envkit.train_router({"red": alone}, tmp_path / "router", display="quiet")
    few = make_run(tmp_path, "red", model, tasks=60)
    with pytest.raises(
        UsageError, match=r"red has 60 prompts of 30 sources, and 12 of them to set its limit"
    ):
        envkit.train_router({"red": few}, tmp_path / "router", display="quiet")
    (few / "episodes.jsonl").unlink()
    with pytest.raises(UsageError, match="has played no RL episodes"):
        envkit.train_router({"red": few}, tmp_path / "router", display="quiet")
    assert not (tmp_path / "router").exists()
