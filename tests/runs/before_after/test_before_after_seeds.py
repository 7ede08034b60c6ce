"""Several seeds in one run: an adapter and a report each; stop and resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from recorder import Recorder
from safetensors.torch import load_file
from stops import stop_after

from envkit.environments.code_editor import CodeEditorEnv, starter_tasks
from envkit.errors import ConfigError, StoreError
from envkit.measure.leaderboard.data import make_leaderboard
from envkit.measure.report.page import load_report, load_reports
from envkit.measure.viewer.episode_index import EpisodeIndex
from envkit.runs.before_after import seeds as before_after_seeds
from envkit.runs.before_after.run import BeforeAfter
from envkit.runs.before_after.setup import prepare
from envkit.runs.folder.timing import training_seconds
from envkit.runtime.display import Silent
from envkit.runtime.prices import load_prices
from envkit.runtime.stop import ShouldStop, never
from envkit.runtime.store import RunFolder
from envkit.sandbox import SandboxBackend
from envkit.sandbox.choice import sandbox_backend
from envkit.training.config import TrainConfig
from envkit.types import Task

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_probe")]  # whole runs of several seeds

TRAIN: list[Task] = [replace(task, split="train") for task in starter_tasks()[:4]]
HELDOUT: list[Task] = [replace(task, split="heldout") for task in starter_tasks()[4:7]]
SEEDS = (3, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("model")).path


def start(root: Path, model: Path, **settings: Any) -> RunFolder:
    config = TrainConfig(
        model=str(model),
        lora_r=2,
        sft_examples=8,
        sft_batch_size=4,
        max_steps=2,
        groups_per_step=2,
        num_generations=2,
        max_completion_length=4,
        save_steps=1,
    )
    planned = prepare(
        replace(config, **settings),
        None,
        {CodeEditorEnv: TRAIN},
        {CodeEditorEnv: HELDOUT},
        backend=sandbox_backend(),
        display=Silent(),
        command="envkit train",
    )
    return before_after_seeds.start(root, planned, SEEDS)


def resume(run: RunFolder, backend: SandboxBackend, should_stop: ShouldStop = never) -> list[Path]:
    return before_after_seeds.MultiSeedStudy(run, [CodeEditorEnv], backend, Silent(), should_stop).run()


class _Shown(Silent):
    """Keeps the facts of each phase."""

    def __init__(self) -> None:
        self._phase = ""
        self.facts: dict[str, list[str]] = {}

    def phase(self, name: str, total: int) -> None:
        self._phase = name

    def advance(self, done: int, facts: str) -> None:
        self.facts.setdefault(self._phase, []).append(facts)


def adapter(run: RunFolder, seed: int) -> dict[str, Any]:
    folder = run.path / f"seed-{seed}" / "checkpoints" / "step-000002"
    return load_file(folder / "adapter_model.safetensors")


def test_each_seed_has_a_report_and_an_adapter(tmp_path: Path, model: Path, backend: SandboxBackend) -> None:
    run, tracker, shown = start(tmp_path, model), Recorder(), _Shown()
    work = before_after_seeds.MultiSeedStudy(
        run, [CodeEditorEnv], backend, shown, never, trackers=[("mine", tracker.track)]
    )
    pages = work.run()
    learned = shown.facts["reinforcement learning, 2 seeds"]
    assert {facts.partition(": reward")[0] for facts in learned} == {"seed 3", "seed 8"}
    ids = [f"{run.id}-seed-{seed}" for seed in SEEDS]
    assert [(each.id, each.group, each.config["seed"]) for each in tracker.runs] == [
        (name, run.id, seed) for name, seed in zip(ids, SEEDS, strict=True)
    ]
    assert {name for name, phase, step in tracker.metrics if (phase, step) == ("rl", 2)} == {*ids}
    assert {name for name, phase, _ in tracker.metrics if phase == "eval"} == {*ids}
    assert [page.parent for page in pages] == [run.path / "seed-3", run.path / "seed-8"]
    first, second = (load_report(page.parent) for page in pages)
    for data in (first, second):
        names = ["oracle", "no-op", "blind-mutant", "enumerate", "base", "SFT", "SFT+RL"]
        assert [row.name for row in data.rows] == names
        assert [point.step for point in data.training] == [1, 2]
        assert not data.warnings
    # The base answers for both, and its time is counted once.
    assert first.rows[4].results == second.rows[4].results
    phases = [{phase.name for phase in data.phases} for data in (first, second)]
    assert phases[0] - phases[1] == {f"evaluate {name}" for name in names[:5]}
    assert {"SFT warm start", "reinforcement learning", "evaluate SFT+RL"} <= phases[1]
    one, other = (adapter(run, seed) for seed in SEEDS)
    assert not all((one[name] == other[name]).all() for name in one)
    played = [[*RunFolder.open(run.path / f"seed-{seed}").trajectories("episodes")] for seed in SEEDS]
    assert [{t.key.seed for t in own} for own in played] == [{3}, {8}]
    # Whatever reads the whole run finds both, and tells them apart.
    assert [data.run for data in load_reports(run.path)] == [f"{run.id}/seed-{seed}" for seed in SEEDS]
    journals = {entry.journal for entry in EpisodeIndex(run).refresh()}
    assert {"seed-3/episodes", "seed-8/episodes", "seed-8/eval-SFT+RL"} <= journals
    [section] = make_leaderboard(load_reports(run.path), load_prices(), "cpu-2-cores").sections
    assert [row.name for row in section.rows].count("base") == 1
    assert len([row for row in section.rows if row.name.startswith("SFT+RL · ")]) == 2
    assert training_seconds(RunFolder.open(run.path / "seed-8"), ("reinforcement",)) > 0


@pytest.mark.long
def test_a_run_stopped_anywhere_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, model: Path, backend: SandboxBackend
) -> None:
    whole, stopped = start(tmp_path, model), start(tmp_path, model)
    resume(whole, backend)
    polls, attempts, is_whole = 1, 0, False
    while not is_whole:
        pages = resume(stopped, backend, stop_after(polls))
        warnings = [text for page in pages for text in load_report(page.parent).warnings]
        is_whole = not any("stopped early" in text for text in warnings)
        polls, attempts = polls + polls // 2 + 1, attempts + 1
    assert attempts > 5
    for seed in SEEDS:
        one, other = adapter(whole, seed), adapter(stopped, seed)
        assert all((one[name] == other[name]).all() for name in one)


def test_one_seed_of_a_run_is_not_resumed_alone(tmp_path: Path, model: Path, backend: SandboxBackend) -> None:
    run = start(tmp_path, model)
    part = RunFolder.open(run.path / "seed-3")
    with pytest.raises(
        StoreError, match=f"is one seed of {run.id}, and its seeds train together; resume {run.id}"
    ):
        BeforeAfter(part, [CodeEditorEnv], backend, Silent(), never).run()


def test_another_kind_of_run_is_refused(tmp_path: Path, model: Path, backend: SandboxBackend) -> None:
    run = start(tmp_path, model)
    with pytest.raises(StoreError, match="is a run of kind 'before-after'; expected 'before-after-seeds'"):
        resume(RunFolder.open(run.path / "seed-3"), backend)


def test_trl_trains_one_at_a_time(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match="backend 'trl' trains one adapter at a time; give one seed"):
        start(tmp_path, model, backend="trl")
    assert not [*tmp_path.iterdir()]
