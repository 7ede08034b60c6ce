"""The origin of a row's answers: training time and settings of its adapter."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from envkit.measure.spec import AgentSpec, BenchSpec, EnvironmentSpec
from envkit.models import DEFAULT_MODEL
from envkit.runs.benchmark.agent_factory import AgentFactory
from envkit.runtime.display import Silent
from envkit.runtime.prices import load_prices
from envkit.runtime.store import RunFolder
from envkit.training.config import TrainConfig, to_mapping

HERE = {"cpu": "one", "cores": 2, "threads": 2, "dtype": "float32", "card": ""}


@pytest.fixture
def trained(tmp_path: Path) -> RunFolder:
    """A run that has trained: a warm start of 30 seconds, estimates of 5, and 100 of RL."""
    run = RunFolder.create(tmp_path / "runs", "before-after", {"machine": HERE, "plan": {"train": {}}})
    with run.journal("phases") as journal:
        for phase, seconds in (
            ("evaluate base", 50.0),
            ("SFT warm start", 30.0),
            ("estimate difficulty", 5.0),
            ("reinforcement learning", 100.0),
        ):
            journal.append({"phase": phase, "seconds": seconds, "tokens": 0})
    for folder in ("sft", "checkpoints/step-000005", "checkpoints/step-000010"):
        (run.path / folder).mkdir(parents=True)
    return run


def seconds(run: RunFolder, adapter: Path, machine: dict[str, object] = HERE) -> float:
    row = AgentSpec("mine", adapter=str(adapter))
    spec = BenchSpec((EnvironmentSpec("code-editor"),), (row,))
    began = {"models": {DEFAULT_MODEL: "d"}, "adapters": {"mine": "a"}, "machine": machine}
    return AgentFactory(spec, began, load_prices(), Silent()).origin(spec.of(row), run, ()).training_seconds


def test_the_newest_checkpoint_has_taken_all_of_training(trained: RunFolder) -> None:
    assert seconds(trained, trained.path / "checkpoints" / "step-000010") == 135


def test_an_sft_adapter_took_only_the_time_of_the_warm_start(trained: RunFolder) -> None:
    assert seconds(trained, trained.path / "sft") == 30


def test_the_warm_start_of_another_run_counts(trained: RunFolder, tmp_path: Path) -> None:
    def later(begun: Path) -> RunFolder:
        plan = {"train": to_mapping(TrainConfig(warm_start=str(begun), sft_examples=0))}
        run = RunFolder.create(tmp_path / "runs", "before-after", {"machine": HERE, "plan": plan})
        with run.journal("phases") as journal:
            journal.append({"phase": "reinforcement learning", "seconds": 7.0, "tokens": 0})
        for folder in ("sft", "checkpoints/step-000001"):
            (run.path / folder).mkdir(parents=True)
        return run

    run = later(trained.path / "sft")
    assert seconds(run, run.path / "checkpoints" / "step-000001") == 37
    assert seconds(run, run.path / "sft") == 30
    again = later(run.path / "checkpoints" / "step-000001")
    assert seconds(again, again.path / "checkpoints" / "step-000001") == 44
    unknown = later(tmp_path / "elsewhere")
    assert math.isnan(seconds(unknown, unknown.path / "checkpoints" / "step-000001"))


def test_training_time_of_an_earlier_checkpoint_is_unknown(trained: RunFolder) -> None:
    assert math.isnan(seconds(trained, trained.path / "checkpoints" / "step-000005"))


def test_training_time_of_an_adapter_outside_a_run_is_unknown(trained: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "copied").mkdir()
    assert math.isnan(seconds(trained, tmp_path / "copied"))
    support = RunFolder.create(tmp_path / "runs", "support", {"machine": HERE})
    support.journal("phases").close()
    (support.path / "steering").mkdir()
    assert math.isnan(seconds(trained, support.path / "steering"))


@pytest.mark.parametrize("other", [{"cores": 64}, {"card": "A100"}])
def test_hours_of_another_machine_have_another_price(trained: RunFolder, other: dict[str, object]) -> None:
    assert math.isnan(seconds(trained, trained.path / "checkpoints" / "step-000010", {**HERE, **other}))
    assert seconds(trained, trained.path / "sft", {**HERE, "cpu": "another", "threads": 1}) == 30
