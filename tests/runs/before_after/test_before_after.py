"""A whole run on a tiny model: controls, evaluation, warm start, RL, report; stop and resume."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import pytest
import tiny
import torch
from recorder import Recorder
from safetensors.torch import load_file, save_file
from stops import StopWhenShown, stop_after
from transformers import AutoTokenizer

from envkit.engine.chat import ChatRenderer
from envkit.env.grade import Grade
from envkit.environments.code_editor import CodeEditorEnv, starter_tasks
from envkit.environments.code_editor import env as code_editor
from envkit.environments.code_editor.graders import calls
from envkit.environments.sql_desk import SqlDeskEnv
from envkit.errors import ConfigError, ModelError, SandboxError, StoreError, TaskFileError, TrainingError
from envkit.measure.report.page import load_report
from envkit.measure.report.summary import summarise
from envkit.measure.report.text import warnings
from envkit.models import resolve
from envkit.runs.before_after.env_eval import MODEL_ROWS, _description, _over_baselines
from envkit.runs.before_after.run import BeforeAfter
from envkit.runs.before_after.setup import RunSetup, prepare, require_space
from envkit.runs.before_after.setup import start as start_study
from envkit.runs.before_after.warm_start import phase_tasks, warm_start
from envkit.runs.folder.build_report import _latest_steps, _learning_curve
from envkit.runs.folder.claim import read_claim
from envkit.runs.folder.provenance import require_unchanged
from envkit.runs.folder.run_records import EnvironmentPart, LoggedStep
from envkit.runtime.display import Silent
from envkit.runtime.stop import ShouldStop, never
from envkit.runtime.store import RunFolder
from envkit.sandbox import Contents, Sandbox, SandboxBackend
from envkit.sandbox.choice import sandbox_backend
from envkit.training.checkpoint import CheckpointStore, save_adapter
from envkit.training.config import Mix, TrainConfig
from envkit.training.policy import Policy
from envkit.training.trackers import resolve as resolve_trackers
from envkit.types import Task

TRAIN: list[Task] = [replace(task, split="train") for task in starter_tasks()[:4]]
HELDOUT: list[Task] = [replace(task, split="heldout") for task in starter_tasks()[4:7]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("model")).path


def small(model: Path, **settings: Any) -> TrainConfig:
    return TrainConfig(
        model=str(model),
        lora_r=2,
        sft_batch_size=4,
        max_steps=2,
        groups_per_step=2,
        num_generations=2,
        max_completion_length=4,
        save_steps=1,
        **{"sft_examples": 8, **settings},
    )


def planned(config: TrainConfig, heldout: Sequence[Task], minutes: float | None) -> RunSetup:
    return prepare(
        config,
        minutes,
        {CodeEditorEnv: TRAIN},
        {CodeEditorEnv: heldout},
        backend=sandbox_backend(),
        display=Silent(),
        command="envkit train",
    )


@functools.cache
def default_study(model: Path) -> RunSetup:
    return planned(small(model), HELDOUT, None)


def begin(root: Path, model: Path, **settings: Any) -> RunFolder:
    study = planned(small(model, **settings), HELDOUT, None) if settings else default_study(model)
    return start_study(root, study)


def start(root: Path, config: TrainConfig, heldout: Sequence[Task]) -> RunFolder:
    return start_study(root, planned(config, heldout, 1.0))


def study(run: RunFolder, backend: SandboxBackend, should_stop: ShouldStop = never) -> BeforeAfter:
    return BeforeAfter(run, [CodeEditorEnv], backend, Silent(), should_stop)


#: Rows of the code editor's reports that need no model.
SCRIPTS = ["oracle", "no-op", "blind-mutant", "enumerate"]


def is_stopped(folder: Path) -> bool:
    return any("stopped early" in warning for warning in load_report(folder).warnings)


def adapter(run: RunFolder) -> Path:
    return run.path / "checkpoints" / "step-000002" / "adapter_model.safetensors"


@pytest.mark.parametrize("learner", ["envkit", pytest.param("trl", marks=pytest.mark.slow)])
def test_a_run_ends_with_a_report_of_every_row(
    tmp_path: Path, model: Path, backend: SandboxBackend, learner: str
) -> None:
    run = begin(tmp_path, model, backend=learner)
    tracker, broken, said = Recorder(), Recorder(fails="rl"), list[str]()
    display = Silent()
    display.say = said.append
    trackers = [*resolve_trackers(["tensorboard"]), ("mine", tracker.track), ("broken", broken.track)]
    [page] = BeforeAfter(run, [CodeEditorEnv], backend, display, never, trackers=trackers).run()
    data = load_report(run.path)
    assert page.read_text().startswith("<!doctype html>")
    assert [row.name for row in data.rows] == [*SCRIPTS, "base", "SFT", "SFT+RL"]
    assert [point.step for point in data.training] == [1, 2]
    assert not data.warnings
    base = data.rows[len(SCRIPTS)]
    assert all(item.samples == 4 for item in base.results)
    assert all(item.seconds > 0 for row in data.rows for item in row.results)
    assert data.isolation == "sandbox"
    assert len([*(run.path / "tensorboard").iterdir()]) == 1
    steps = [("sft", 1), ("sft", 2), ("rl", 1), ("rl", 2), ("eval", 2)]
    assert tracker.events == [("begin", run.id), *steps, ("end", run.id)]
    assert broken.events == [("begin", run.id), *steps[:2], ("failed", ConnectionError)]
    assert [line for line in said if line.startswith("tracker")] == [
        "tracker broken failed at step 1 of phase rl and is left out from here on (ConnectionError: no "
        "network); the run goes on, and its journals have every step"
    ]
    [logged] = tracker.runs
    assert (logged.folder, logged.group) == (run.path, "")
    assert (logged.config["lora_r"], logged.config["environments"]) == (2, ["code-editor"])
    for record in run.records("metrics"):
        metrics = tracker.metrics[run.id, record["phase"], record["step"]]
        assert metrics == {name: record[name] for name in metrics}
        parts = {"environments"} if record["phase"] == "rl" else set[str]()
        assert record.keys() == {"schema", "phase", "step", *metrics, *parts}
        if parts:  # of a single environment, they are the step's own numbers
            assert record["environments"] == {
                "code-editor": {"episodes": 4, "reward": record["reward"], "mixed": record["mixed"]}
            }
    evaluation = tracker.metrics[run.id, "eval", 2]
    rates = {row.name: row.solve_rate.interval for row in summarise(data).rows}
    for name, row in (("base", "base"), ("sft", "SFT"), ("trained", "SFT+RL")):
        rate, interval = f"code-editor/{name}/pass_at_1", rates[row]
        assert interval is not None
        assert evaluation[rate] == interval.estimate
        assert (evaluation[f"{rate}_low"], evaluation[f"{rate}_high"]) == (interval.low, interval.high)
    assert json.loads((run.path / "sft" / "base.json").read_text())["digest"] == data.model_digest
    assert {row.origin.digest for row in data.rows[len(SCRIPTS) :]} == {data.model_digest}
    assert [pair.meaning for pair in data.differences][-3:] == [
        "SFT+RL over blind-mutant",
        "SFT+RL over enumerate",
        "On tasks that enumerate does not solve",
    ]


@pytest.mark.slow
def test_without_rl_the_report_has_no_row_for_it_and_the_warm_start_makes_the_claim(
    tmp_path: Path, model: Path, backend: SandboxBackend
) -> None:
    run = start_study(tmp_path, planned(replace(small(model), max_steps=0), HELDOUT, None))
    study(run, backend).run()
    data = load_report(run.path)
    assert [row.name for row in data.rows] == [*SCRIPTS, "base", "SFT"]
    assert "SFT over enumerate" in [pair.meaning for pair in data.differences]
    [claimed] = read_claim(run.path / "sft").environments
    assert [*claimed.tasks] == [task.id for task in HELDOUT[: len(claimed.tasks)]]


def test_rows_are_described_and_compared_by_how_the_run_trained() -> None:
    warm, begun = TrainConfig(), TrainConfig(sft_examples=0, warm_start="an/adapter")
    assert _description("SFT", warm) == MODEL_ROWS["SFT"]
    assert _description("SFT", begun) == "the adapter that training began with"
    assert _description("SFT+RL", begun) == MODEL_ROWS["SFT+RL"]
    assert {pair.row for pair in _over_baselines(CodeEditorEnv, warm)} == {"SFT+RL", "RL"}
    alone = _over_baselines(CodeEditorEnv, replace(warm, max_steps=0))
    assert [(pair.row, pair.against) for pair in alone] == [
        ("SFT", "blind-mutant"),
        ("SFT", "enumerate"),
        ("SFT", "base"),
    ]


@pytest.mark.slow
def test_without_a_warm_start_the_report_has_no_row_for_it(
    tmp_path: Path, model: Path, backend: SandboxBackend
) -> None:
    settings = {"sft_examples": 0, "stop_strings": ("e", "\n"), "shaping": {"edits_a_little": 0.2}}
    run = begin(tmp_path, model, **settings)
    study(run, backend).run()
    data = load_report(run.path)
    assert [row.name for row in data.rows] == [*SCRIPTS, "base", "RL"]
    assert data.differences[0].meaning == "RL"
    assert (data.config["stop_strings"], data.config["shaping.edits_a_little"]) == ("'e', '\\n'", 0.2)
    assert data.rows[len(SCRIPTS)].origin.stop_strings == ("e", "\n")
    for journal in ("episodes", "eval-base", "eval-RL"):
        turns = [t.steps[0].turn for t in run.trajectories(journal)]
        assert "stop" in {turn.stop for turn in turns}
        for turn in turns:
            assert turn.stop == "stop" or not {"e", "\n"} & {*turn.text}


@pytest.mark.slow
def test_a_run_stopped_anywhere_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, model: Path, backend: SandboxBackend
) -> None:
    whole, stopped = begin(tmp_path, model), begin(tmp_path, model)
    study(whole, backend).run()
    polls, attempts = 1, 0
    while attempts == 0 or is_stopped(stopped.path):
        study(stopped, backend, stop_after(polls)).run()
        polls, attempts = polls + polls // 2 + 1, attempts + 1
    assert attempts > 5
    one, other = load_file(adapter(whole)), load_file(adapter(stopped))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    rewards = [[t.reward for t in run.trajectories("eval-SFT+RL")] for run in (whole, stopped)]
    assert rewards[0] == rewards[1]
    told, again = ({one.name: one.tokens for one in load_report(run.path).phases} for run in (whole, stopped))
    assert told == again
    assert told["evaluate base"] == sum(
        item.completion_tokens for item in load_report(whole.path).rows[4].results
    )


def test_a_warm_start_that_is_stopped_goes_on_where_it_was(
    tmp_path: Path, model: Path, backend: SandboxBackend
) -> None:
    run = begin(tmp_path, model)

    def taken() -> list[int]:
        return [record["step"] for record in run.records("metrics") if record["phase"] == "sft"]

    study(run, backend, lambda: bool(taken())).run()
    assert taken() == [1]
    assert [path.name for path in (run.path / "sft-checkpoints").iterdir()] == ["step-000001"]
    assert not (run.path / "sft").exists()
    study(run, backend).run()
    assert taken() == [1, 2]
    assert not (run.path / "sft-checkpoints").exists()


@pytest.mark.slow
def test_rl_from_another_runs_warm_start_ends_with_the_same_bits(
    tmp_path: Path, model: Path, backend: SandboxBackend
) -> None:
    whole = begin(tmp_path / "whole", model)
    study(whole, backend).run()
    later = begin(tmp_path / "later", model, warm_start=str(whole.path / "sft"), sft_examples=0)
    study(later, backend).run()
    assert adapter(later).read_bytes() == adapter(whole).read_bytes()
    data = load_report(later.path)
    assert [row.name for row in data.rows] == [*SCRIPTS, "base", "SFT", "SFT+RL"]
    assert any("times here leave it out" in warning for warning in data.warnings)


def test_a_run_whose_checkpoints_the_disk_cannot_hold_is_refused(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, root = small(model, control="full"), tmp_path / "not" / "yet"
    policy = Policy.of(resolve(str(model), Silent()), replace(config, dtype="float32"))
    optimizer = torch.optim.AdamW(policy.trainable())
    for parameter in policy.trainable():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    saved = CheckpointStore(tmp_path).save(1, policy, optimizer, {})
    checkpoint = sum(file.stat().st_size for file in saved.iterdir())

    def free(size: float) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=int(size)))

    free(3.5 * checkpoint)
    require_space(root, config, 1, Silent())
    for adapters, size in ((1, 3 * checkpoint), (2, 3.5 * checkpoint)):
        free(size)
        with pytest.raises(StoreError, match=r"yet: 0\.0 GB are free.* free some, or name a folder"):
            require_space(root, config, adapters, Silent())


def test_a_run_that_is_out_of_memory_says_what_to_lower(
    tmp_path: Path, model: Path, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backward(*_: Any) -> float:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("envkit.training.sft.backward", backward)
    run = begin(tmp_path, model)
    stopping = study(run, backend)
    stopping._evaluates = False  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(ModelError, match=r"out of memory .* lower max_tokens_per_forward, which is 2048, or"):
        stopping.run()


def test_a_copied_warm_start_that_is_gone_is_not_replaced_by_an_untrained_one(
    tmp_path: Path, model: Path, backend: SandboxBackend
) -> None:
    config = small(model, sft_examples=0, warm_start=str(tmp_path / "adapter"))
    policy = Policy.of(resolve(str(model), Silent()), replace(config, dtype="float32"))
    save_adapter(policy, tmp_path / "adapter")
    run = begin(tmp_path / "run", model, warm_start=str(tmp_path / "adapter"), sft_examples=0)
    shutil.rmtree(run.path / "sft")
    with pytest.raises(StoreError, match=r"sft is gone; it was a copy of .*adapter\. Restore it"):
        study(run, backend).run()
    assert not (run.path / "sft").exists()


def test_a_warm_start_of_another_rank_is_refused(tmp_path: Path, model: Path) -> None:
    config = small(model, sft_examples=0)
    policy = Policy.of(resolve(str(model), Silent()), replace(config, dtype="float32"))
    save_adapter(policy, tmp_path / "adapter")
    with pytest.raises(ModelError, match="r is 2, and lora_r is 4; set lora_r to it"):
        planned(replace(config, lora_r=4, warm_start=str(tmp_path / "adapter")), HELDOUT, None)


def test_a_warm_start_of_other_layers_is_refused(tmp_path: Path, model: Path) -> None:
    config = small(model, sft_examples=0, warm_start=str(tmp_path / "adapter"))
    policy = Policy.of(resolve(str(model), Silent()), replace(config, dtype="float32"))
    save_adapter(policy, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    del weights[min(weights)]
    save_file(weights, file)
    (tmp_path / "adapter" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="its rank or its layers are others"):
        planned(config, HELDOUT, None)


def test_shaping_by_a_check_that_no_environment_has_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(
        ConfigError, match="shaping names 'edits', no check here; expected one of: answers_as"
    ):
        begin(tmp_path, model, shaping={"edits_a_little": 0.1, "edits": 0.2})
    with pytest.raises(ConfigError, match="shaping names 'answers_many_more', a held-out check"):
        begin(tmp_path, model, shaping={"answers_many_more": 0.1})


def begin_both(root: Path, model: Path, backend: SandboxBackend) -> RunFolder:
    def sql(split: str) -> Sequence[Task]:
        return SqlDeskEnv.make_tasks(split, sandbox=backend, display=Silent())[:3]

    return start_study(
        root,
        prepare(
            replace(
                small(model), groups_per_step=4, mix=(Mix("code-editor", 3), Mix("sql-desk")), sft_examples=12
            ),
            None,
            {CodeEditorEnv: TRAIN, SqlDeskEnv: sql("train")},
            {CodeEditorEnv: HELDOUT, SqlDeskEnv: sql("heldout")},
            backend=sandbox_backend(),
            display=Silent(),
            command="envkit train --env code-editor --env sql-desk",
        ),
    )


def _parts_of(run: RunFolder, step: int) -> Mapping[str, EnvironmentPart]:
    [record] = [r for r in run.read("metrics", LoggedStep) if (r.phase, r.step) == ("rl", step)]
    return record.environments


@pytest.mark.slow
def test_two_environments_train_one_adapter_and_have_a_report_each(
    tmp_path: Path, model: Path, backend: SandboxBackend
) -> None:
    def resume(run: RunFolder, units: int) -> list[Path]:
        display = StopWhenShown(units)
        return BeforeAfter(run, [CodeEditorEnv, SqlDeskEnv], backend, display, display.should_stop).run()

    whole, stopped = (begin_both(tmp_path, model, backend) for _ in range(2))
    pages = resume(whole, 10**6)
    assert [page.parent for page in pages] == [whole.path / "code-editor", whole.path / "sql-desk"]
    for page, tasks in zip(pages, (3, 3), strict=True):
        data = load_report(page.parent)
        assert data.environment == page.parent.name
        scripts = SCRIPTS if data.environment == "code-editor" else ["oracle", "no-op", "random"]
        assert [row.name for row in data.rows] == [*scripts, "base", "SFT", "SFT+RL"]
        assert {len(row.results) for row in data.rows} == {tasks}
        assert [point.step for point in data.training] == [1, 2]
        assert not data.warnings
        assert {phase.name for phase in data.phases} > {
            "SFT warm start",
            "reinforcement learning",
            "evaluate SFT",
        }
    played = list(whole.trajectories("episodes"))
    assert [t.env for t in played] == (["code-editor"] * 6 + ["sql-desk"] * 2) * 2
    for page in pages:
        data = load_report(page.parent)
        assert data.config["mix"] == "code-editor 3.0, sql-desk 1.0"
        for point in data.training:  # its own curve, not that of all
            own = [t for t in played if t.key.step == point.step - 1 and t.env == data.environment]
            assert point.reward == pytest.approx(sum(t.reward for t in own) / len(own))
            assert _parts_of(whole, point.step)[data.environment].episodes == len(own)
    systems = {"code-editor": CodeEditorEnv.system, "sql-desk": SqlDeskEnv.system}
    renderer = ChatRenderer(AutoTokenizer.from_pretrained(model))
    for trajectory in played:
        first = trajectory.steps[0]
        assert first.turn.tokens is not None
        rendered = renderer.first(systems[trajectory.env], first.observation)
        assert first.turn.tokens.prompt_ids == rendered
    for units in range(1, 20):  # growing, because a warm start that is stopped begins again
        if not any(is_stopped(page.parent) for page in resume(stopped, units)):
            break
    assert not any(is_stopped(stopped.path / part) for part in ("code-editor", "sql-desk"))
    one, other = load_file(adapter(whole)), load_file(adapter(stopped))
    assert all((one[name] == other[name]).all() for name in one)
    with pytest.raises(StoreError, match=r"began with code-editor\+sql-desk; found code-editor"):
        study(whole, backend)


@pytest.mark.slow
def test_a_collapsed_run_is_evaluated_and_reported(
    tmp_path: Path, model: Path, backend: SandboxBackend
) -> None:
    run = begin(tmp_path, model, min_entropy=100.0)
    for _ in range(2):  # nothing is left to do the second time
        study(run, backend).run()
        data = load_report(run.path)
        assert [row.name for row in data.rows] == [*SCRIPTS, "base", "SFT", "SFT+RL"]
        (warning,) = data.warnings
        assert warning.startswith("Training ended early: step 1: the policy has collapsed")
        assert [point.step for point in data.training] == [1]


def test_a_run_with_changed_tasks_is_refused(tmp_path: Path, model: Path, backend: SandboxBackend) -> None:
    run = begin(tmp_path, model)
    kept = run.path / "tasks" / "heldout.jsonl"
    kept.write_text(kept.read_text().replace(" == ", " != ", 1))
    with pytest.raises(StoreError, match=r"heldout\.jsonl: the run began with tasks"):
        study(run, backend)


def test_a_run_with_changed_code_is_refused(
    tmp_path: Path, model: Path, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path, model)
    monkeypatch.setattr("envkit.runs.folder.provenance.code_digest", lambda kind: "0ther")
    with pytest.raises(StoreError, match="the code of code-editor has changed since the run began"):
        study(run, backend)


def test_a_run_whose_sandboxes_hold_other_packages_is_refused(
    tmp_path: Path, model: Path, backend: SandboxBackend
) -> None:
    run = begin(tmp_path, model)
    other = backend.with_contents(Contents(("jinja2==3.1.6",)))
    with pytest.raises(
        StoreError, match=r"held nothing beside Python when the run began, and now hold jinja2 3"
    ):
        study(run, other)
    require_unchanged(CodeEditorEnv, other.lock, RunFolder.create(tmp_path, "older", {}))


def test_another_kind_of_run_is_refused(tmp_path: Path, backend: SandboxBackend) -> None:
    run = RunFolder.create(tmp_path, "bench", {"kind": "bench"})
    with pytest.raises(StoreError, match="kind 'bench'"):
        study(run, backend)


def test_a_broken_task_stops_the_study_before_anything_is_measured(
    tmp_path: Path, model: Path, backend: SandboxBackend
) -> None:
    broken = replace(HELDOUT[0], files={"solution.py": str(HELDOUT[0].hidden["reference"])})
    config = TrainConfig(model=str(model), max_completion_length=4)
    run = start(tmp_path, config, [broken])
    with pytest.raises(TrainingError, match="no-op earns 1"):
        study(run, backend).run()


def test_tasks_that_training_sees_are_not_held_out(tmp_path: Path, model: Path) -> None:
    def begun(heldout: Sequence[Task]) -> RunFolder:
        config = TrainConfig(model=str(model))
        return start(tmp_path, config, heldout)

    with pytest.raises(TaskFileError, match="is of split 'train'; expected 'heldout'"):
        begun(TRAIN)
    with pytest.raises(TaskFileError, match="1 sources are in both the train and the held-out tasks"):
        begun([*HELDOUT, replace(TRAIN[0], split="heldout")])
    assert not [*tmp_path.iterdir()]


def test_what_one_environment_trains_on_is_not_held_out_of_another(tmp_path: Path, model: Path) -> None:
    class Other(CodeEditorEnv):
        id = "other"

    with pytest.raises(TaskFileError, match="1 sources are in both"):
        prepare(
            small(model),
            None,
            {CodeEditorEnv: TRAIN, Other: TRAIN[1:]},
            {CodeEditorEnv: HELDOUT, Other: [replace(TRAIN[0], split="heldout")]},
            backend=sandbox_backend(),
            display=Silent(),
            command="envkit train",
        )


def test_two_processes_do_not_work_in_one_run(tmp_path: Path, model: Path, backend: SandboxBackend) -> None:
    run = begin(tmp_path, model)
    with run.locked(), pytest.raises(StoreError, match="another process is at work in it"):
        study(RunFolder.open(run.path), backend).run()


@final
class Failing(SandboxBackend):
    """Real sandboxes until ``broken`` is set; then none can be made."""

    name = "failing"
    isolated = False

    def __init__(self, inner: SandboxBackend) -> None:
        self.inner, self.broken = inner, True

    def available(self) -> str | None:
        return self.inner.available()

    def create(self) -> Sandbox:
        if self.broken:
            raise SandboxError("no cgroup left")
        return self.inner.create()


@pytest.mark.slow
def test_a_broken_sandbox_is_not_blamed_on_the_task_and_the_run_resumes(
    tmp_path: Path, model: Path, backend: SandboxBackend
) -> None:
    run, failing = begin(tmp_path, model), Failing(backend)
    with pytest.raises(SandboxError, match=r"oracle: 3 of 3 episodes broke: no cgroup left"):
        study(run, failing).run()
    failing.broken = False
    study(run, failing).run()
    data = load_report(run.path)
    assert [sum(item.voids for item in row.results) for row in data.rows] == [0] * 7
    assert data.isolation == "none"
    assert any("isolation: none" in text for text in warnings(data, summarise(data)))


def test_repeated_steps_of_a_resumed_run_appear_once_in_its_curve() -> None:
    log = [("sft", 1), ("sft", 2), *(("rl", step) for step in (1, 2, 3, 4, 3, 4, 5, 3))]
    numbers = {"reward": 0.0, "mixed": 0.0, "completion_tokens": 1, "rollout_s": 1.0}
    kept = _latest_steps(
        LoggedStep(phase, step, float(at), **(numbers if phase == "rl" else {}))
        for at, (phase, step) in enumerate(log)
    )
    assert [(one.phase, one.step) for one in kept] == [*log[:2], ("rl", 1), ("rl", 2), ("rl", 3)]
    assert kept[-1].loss == len(log) - 1


def test_a_learning_curve_is_the_environments_own_and_skips_steps_without_it() -> None:
    def step(number: int, **parts: EnvironmentPart) -> LoggedStep:
        return LoggedStep("rl", number, 0.0, 0.5, 0.5, 10, 2.0, environments=parts)

    steps = [
        LoggedStep("sft", 1, 0.1),
        step(1, a=EnvironmentPart(8, 0.25, 1.0), b=EnvironmentPart(8, 0.75, 0.0)),
        step(2, b=EnvironmentPart(16, 1.0, 0.0)),
        step(3),  # of an older version
    ]
    found = [
        (point.step, point.reward, point.mixed_share, point.tokens_per_s)
        for point in _learning_curve(steps, "a")
    ]
    assert found == [(1, 0.25, 1.0, 5.0), (3, 0.5, 0.5, 5.0)]


def test_rl_trains_on_functions_that_the_warm_start_has_not_seen() -> None:
    tasks = [
        Task(f"{number}", "train", "", {}, {"source": f"f{number % 6}"})
        for number in (3, 1, 0, 2, 4, 8, 9, 5)
    ]
    warm = TrainConfig()
    imitated, practised = phase_tasks(tasks, warm)
    assert [task.id for task in imitated] == ["3", "1", "9"]
    assert [task.id for task in practised] == ["0", "2", "4", "8", "5"]
    assert phase_tasks(tasks, replace(warm, warm_start="an/adapter", sft_examples=0))[1] == practised
    assert phase_tasks(tasks[:2], warm) == (tasks[:2], tasks[:2])
    assert phase_tasks(tasks, replace(warm, max_steps=0)) == (tasks, [])
    assert phase_tasks(tasks, replace(warm, sft_examples=0)) == ([], tasks)


def test_rl_that_begins_with_an_adapter_of_sft_alone_trains_on_other_sources(
    tmp_path: Path, model: Path, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    imitated: list[Task] = []

    def imitating(policy: Policy, tasks: Mapping[Any, Sequence[Task]], *others: Any) -> None:
        imitated.extend(tasks[CodeEditorEnv])

    monkeypatch.setattr("envkit.runs.before_after.warm_start.run_warm_start", imitating)
    display, said = Silent(), list[str]()
    display.say = said.append

    def sft(folder: str, **settings: Any) -> set[str]:
        imitated.clear()
        config = replace(small(model), **settings)
        warm_start(tmp_path / folder, config, CodeEditorEnv, TRAIN, backend, display, never)
        return {task.source for task in imitated}

    assert sft("alone", max_steps=0) == {task.source for task in TRAIN}
    assert not any("imitating" in each for each in said)  # a busy machine is told, too
    first = sft("adapter")
    assert said[-1].startswith("imitating tasks of a third of the sources, 1 of 4, so that RL has new ones")
    run = begin(tmp_path / "run", model, warm_start=str(tmp_path / "adapter"), sft_examples=0)
    played = {task.source for task in TRAIN if task.id in study(run, backend).env_factories()}
    assert len(first) == 1
    assert played == {task.source for task in TRAIN} - first


def test_the_plan_counts_the_tasks_that_rl_has(tmp_path: Path, model: Path, backend: SandboxBackend) -> None:
    display, said = Silent(), list[str]()
    display.say = said.append
    for examples in (8, 0):
        planned = prepare(
            replace(small(model), sft_examples=examples, groups_per_step=9),
            None,
            {CodeEditorEnv: TRAIN},
            {CodeEditorEnv: HELDOUT},
            backend=backend,
            display=display,
            command="envkit train",
            evaluate=False,
        )
        played = study(start_study(tmp_path, planned), backend).env_factories()
        assert said[-1] == f"there are only {len(played)} tasks for RL, so each step plays that many groups"


@pytest.mark.slow
def test_a_report_names_weaker_verdicts(
    tmp_path: Path, model: Path, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weaker(*given: Any, **named: Any) -> Grade:
        return replace(grade(*given, **named), weakness="tests saw the code from inside")

    grade = calls.grade
    monkeypatch.setattr(calls, "grade", weaker)
    monkeypatch.setattr(code_editor, "_GRADES", code_editor.ResultCache(64))  # nothing that was graded before
    run = begin(tmp_path, model)
    [page] = study(run, backend).run()
    assert "Graded by weaker means: tests saw the code from inside." in page.read_text()


@pytest.mark.slow
def test_a_run_may_only_train(tmp_path: Path, model: Path, backend: SandboxBackend) -> None:
    planned = prepare(
        replace(small(model), max_steps=1),
        None,
        {CodeEditorEnv: TRAIN},
        {CodeEditorEnv: HELDOUT},
        backend=sandbox_backend(),
        display=Silent(),
        command="envkit train",
        evaluate=False,
    )
    run = start_study(tmp_path, planned)
    [page] = study(run, backend).run()
    data = load_report(run.path)
    assert data.rows == ()
    assert "Evaluation was switched off." in data.warnings
    assert "Nothing was measured" in page.read_text()
    assert (run.path / "checkpoints" / "step-000001" / "adapter_model.safetensors").exists()


def test_a_plan_that_was_edited_is_refused(tmp_path: Path, model: Path, backend: SandboxBackend) -> None:
    run = begin(tmp_path, model)
    file = run.path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["plan"]["train"]["learning_rate"] *= 2
    file.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=r"manifest\.json was edited after the run began"):
        study(run, backend)


def test_changed_training_code_gives_a_warning(
    tmp_path: Path, model: Path, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path, model)
    monkeypatch.setattr("envkit.runs.before_after.run.training_code_digest", lambda: "0ther")
    study(run, backend, stop_after(0)).run()
    assert any("training code has changed" in warning for warning in load_report(run.path).warnings)


def timed(model: Path, tmp_path: Path, minutes: float, learner: str = "envkit") -> RunFolder:
    """A run of six planned steps and a budget."""
    study = planned(replace(small(model), max_steps=6, backend=learner), HELDOUT, None)
    return start_study(tmp_path, replace(study, plan=replace(study.plan, minutes=minutes, step_s=1.0)))


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["envkit", "trl"])
def test_rl_ends_early_when_the_minutes_are_spent(
    tmp_path: Path, model: Path, backend: SandboxBackend, learner: str
) -> None:
    run = timed(model, tmp_path, 1e-3, learner)
    for _ in range(2):  # the second time, nothing is left to do
        study(run, backend).run()
        assert [point.step for point in load_report(run.path).training] == [1, 2]
        assert not is_stopped(run.path)


@pytest.mark.slow
def test_rl_goes_on_while_there_are_minutes(
    tmp_path: Path, model: Path, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []

    def eight(left_s: float, step: int, spent_s: float, forecast_s: float) -> int:
        asked.append((left_s, step))
        return 8

    monkeypatch.setattr("envkit.runs.before_after.run.steps_in_time", eight)
    run = timed(model, tmp_path, minutes=60.0)
    study(run, backend).run()
    assert [point.step for point in load_report(run.path).training] == [*range(1, 9)]
    left_s, steps = zip(*asked, strict=True)
    assert steps == tuple(range(9))
    assert left_s[0] < 3600
    assert all(later <= earlier for earlier, later in itertools.pairwise(left_s))
