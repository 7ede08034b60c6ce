"""`envkit.support`: whether groups of episodes of a base earn different rewards."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner

import envkit
from envkit import EpisodeKey, Outcome, StepRecord, Task, Trajectory, Turn
from envkit.cli.main import app
from envkit.environments.code_editor import starter_tasks
from envkit.measure.stats import Interval
from envkit.models import resolve
from envkit.runs.results import SupportResult
from envkit.runs.tools.support import Support, share_needed, support_of


def group(*rewards: float) -> list[Trajectory]:
    return [
        Trajectory(
            EpisodeKey(0, 0, 0, row, "t"),
            "env",
            "agent",
            (StepRecord("seen", Turn("said"), reward),),
            Outcome.SOLVED if reward == 1 else Outcome.FAILED,
        )
        for row, reward in enumerate(rewards)
    ]


def found(*groups: Sequence[Trajectory], needed: float = 0.05) -> Support:
    return support_of(groups, [f"source {number}" for number, _ in enumerate(groups)], needed)


def test_a_group_teaches_if_its_rewards_differ() -> None:
    some = found(group(0, 1, 0, 0), group(0.2, 0.4, 0.2, 0.2), group(1, 1, 1, 1), group(0, 0, 0, 0))
    assert (some.groups, some.group_size) == (4, 4)
    assert some.solved.estimate == pytest.approx(5 / 16)
    assert some.ever.estimate == 0.5
    assert some.mixed.estimate == 0.5


@pytest.mark.parametrize(
    ("groups", "needed", "can_start", "words"),
    [
        ([group(0, 1)] * 16, 0.05, True, "RL can start here."),
        ([group(0, 1)] * 8, 0.05, True, "RL can start here."),
        ([group(0, 0)] * 16, 0.05, None, "16 tasks do not decide"),
        ([group(0, 0)] * 128, 0.05, False, "a warm start"),
        ([group(1, 1)] * 128, 0.05, False, "these tasks are too easy"),
        ([group(0, 1), *[group(0, 0)] * 15], 0.05, None, "16 tasks do not decide"),
        ([group(0, 1), *[group(0, 0)] * 15], 0.5, False, "a warm start"),
    ],
)
def test_the_interval_decides(
    groups: list[list[Trajectory]], needed: float, can_start: bool | None, words: str
) -> None:
    some = found(*groups, needed=needed)
    assert some.can_start is can_start
    assert words in some.sentences[-1]


def test_rl_with_one_group_a_step_may_start_where_most_groups_teach() -> None:
    some = found(*[group(0, 1)] * 90, *[group(0, 0)] * 38, needed=share_needed(1))
    assert some.can_start
    assert "RL needs 50.0 %, one of 2 groups." in some.sentences[1]
    assert share_needed(20) == 0.05


def test_one_source_decides_nothing_and_is_valid_json() -> None:
    some = support_of([group(0, 1), group(0, 0)], ["f"] * 2, 0.05)
    assert some.can_start is None
    data = json.loads(json.dumps(some.as_data(), allow_nan=False))
    assert data["mixed"]["estimate"] == 0.5
    assert data["mixed"]["low"] is None
    assert data["can_start"] is None


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = str(tiny.make(tmp_path_factory.mktemp("model") / "model").path)
    return {"model": model, "num_generations": 2, "groups_per_step": 1, "max_completion_length": 4}


def train_tasks(count: int) -> list[Task]:
    return [task for task in starter_tasks() if task.split == "train"][:count]


def test_a_base_that_never_solves_is_found_out_and_its_episodes_are_kept(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    result = envkit.support(config=settings, tasks=train_tasks(8), root=tmp_path, display="quiet")
    assert result.found is not None
    assert result.found.groups == 8
    assert result.found.mixed.estimate == 0
    assert result.found.can_start is False  # steps of one group need half of the groups
    assert json.loads((result.run / "support.json").read_text()) == result.found.as_data()
    assert len((result.run / "eval-policy.jsonl").read_text().splitlines()) == 16


def test_an_adapter_is_tested_in_place_of_the_base(settings: dict[str, Any], tmp_path: Path) -> None:
    warm_start = tmp_path / "adapter"
    tiny.policy(resolve(settings["model"])).save_adapter(warm_start)
    config = settings | {"lora_r": 4, "lora_alpha": 8}
    result = envkit.support(
        config=config, warm_start=warm_start, tasks=train_tasks(2), root=tmp_path, display="quiet"
    )
    assert result.found is not None
    assert str(warm_start) in (result.run / "manifest.json").read_text()


def test_the_same_seed_plays_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    def episodes(seed: int) -> list[Any]:
        result = envkit.support(
            config=settings, seed=seed, tasks=train_tasks(4), root=tmp_path, display="quiet"
        )
        lines = map(json.loads, (result.run / "eval-policy.jsonl").read_text().splitlines())
        return [(line["key"]["task"], [step["turn"]["tokens"] for step in line["steps"]]) for line in lines]

    first, again, other = episodes(1), episodes(1), episodes(2)
    assert sorted(map(str, first)) == sorted(map(str, again))
    assert [task for task, _ in first] != [task for task, _ in other]


@pytest.mark.parametrize(("low", "high", "status"), [(0.1, 0.4, 0), (0.0, 0.01, 1), (0.0, 0.4, 0)])
def test_the_command_says_by_its_status_whether_rl_can_start(
    low: float, high: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = Interval(0.0, 0.0, 0.1, 16)
    some = Support(16, 8, rate, rate, Interval((low + high) / 2, low, high, 16), 0.05)
    monkeypatch.setattr("envkit.runs.support", lambda *_, **__: SupportResult(tmp_path, some))
    shown = CliRunner().invoke(app, ["study", "support"])
    assert shown.exit_code == status
    assert some.sentences[-1] in shown.stdout
    data = json.loads(CliRunner().invoke(app, ["study", "support", "--json"]).stdout)
    assert math.isclose(data["support"]["mixed"]["low"], low)
