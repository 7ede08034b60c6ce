"""The Python interface: pinned signatures, typed results, and the commands as functions."""

from __future__ import annotations

import dataclasses
import inspect
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden
import pytest
import tiny
from recorder import Recorder

import envkit
from envkit import api
from envkit.api.common import short_tasks
from envkit.api.training import _adapters
from envkit.benchmark.report import load_report
from envkit.environments.code_editor import CodeEditorEnv, starter_tasks
from envkit.errors import MissingExtraError, StoreError, TaskFileError, UsageError
from envkit.store import RunFolder
from envkit.types import Task


def describe(item: Any) -> Any:
    """Return a function's parameters and result type, or a class's fields and public members."""
    if inspect.isfunction(item):
        signature = inspect.signature(item)
        return [*map(str, signature.parameters.values()), f"-> {signature.return_annotation}"]
    members = [name for name in vars(item) if not name.startswith("_")]
    fields = (
        [f"{field.name}: {field.type}" for field in dataclasses.fields(item)]
        if dataclasses.is_dataclass(item)
        else []
    )
    return {"fields": fields, "members": sorted(members)}


def test_public_interface_golden() -> None:
    golden.expect("public_api", {name: describe(getattr(api, name)) for name in [*api.__all__]})


def test_names_stay_functions_when_packages_are_imported() -> None:
    import envkit.benchmark.spec
    import envkit.training.config

    assert callable(envkit.train)
    assert callable(envkit.bench)
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        envkit.tarin  # noqa: B018  # pyright: ignore


pytestmark = pytest.mark.usefixtures("one_probe")


@pytest.fixture(scope="module")
def tasks() -> Sequence[Task]:
    return starter_tasks()[:4]


@pytest.fixture(scope="module")
def heldout(tasks: Sequence[Task]) -> Sequence[Task]:
    return [replace(task, split="heldout") for task in starter_tasks()[4:6]]


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, one_probe: None, tasks: Sequence[Task], heldout: Sequence[Task]
) -> envkit.TrainResult:
    """A tiny training run made by `envkit.train`."""
    folder = tmp_path_factory.mktemp("api")
    config = {
        "model": str(tiny.make(folder / "model").path),
        "lora_r": 2,
        "sft_examples": 0,
        "max_steps": 2,
        "groups_per_step": 2,
        "num_generations": 2,
        "max_completion_length": 4,
    }
    return envkit.train(
        config=config,
        tasks=tasks,
        heldout_tasks=heldout,
        max_task_chars=max(task.chars for task in [*tasks, *heldout]),
        allow_unaudited=True,
        root=folder / "runs",
        trackers=["tensorboard", Recorder().track],
        display="quiet",
    )


def test_short_tasks_are_kept_and_a_report_says_so(
    trained: envkit.TrainResult, tasks: Sequence[Task], heldout: Sequence[Task]
) -> None:
    limit = sorted(task.chars for task in tasks)[1]
    kept, count = short_tasks({CodeEditorEnv: tasks}, limit)
    assert kept == {CodeEditorEnv: [task for task in tasks if task.chars <= limit]}
    assert count == "2 of 4"
    with pytest.raises(UsageError, match="code-editor has at most 9 characters; the shortest has"):
        short_tasks({CodeEditorEnv: tasks}, 9)
    longest = max(task.chars for task in [*tasks, *heldout])
    note = f"Only tasks of at most {longest} characters are used: 4 of 4 to train on, 2 of 2 held out."
    assert note in load_report(trained.run).warnings


def test_a_training_run_has_a_typed_result(trained: envkit.TrainResult) -> None:
    assert trained.stopped_by is None
    assert (trained.adapter / "adapter_config.json").exists()
    assert trained.report.page == trained.run / "report.html"
    assert trained.report.rows == ("oracle", "no-op", "blind-mutant", "enumerate", "base", "RL")
    assert trained.report.solve_rate("oracle").estimate == 1.0
    assert trained.report.difference("RL", "base").estimate == 0.0
    with pytest.raises(UsageError, match="no solve rate for row 'SFT'; the report has: oracle"):
        trained.report.solve_rate("SFT")
    manifest = json.loads((trained.run / "manifest.json").read_text())
    assert manifest["command"] == "envkit.train('code-editor')"


def test_nothing_is_printed_when_quiet(
    trained: envkit.TrainResult, capsys: pytest.CaptureFixture[str]
) -> None:
    again = envkit.resume_train(trained.run, display="quiet")
    assert again.adapter == trained.adapter
    assert capsys.readouterr() == ("", "")


def test_a_resumed_run_is_logged_to_the_trackers_that_have_a_name_or_to_others(
    trained: envkit.TrainResult,
) -> None:
    folder, tracker = trained.run / "tensorboard", Recorder()
    before = len([*folder.iterdir()])
    assert json.loads((trained.run / "manifest.json").read_text())["trackers"] == ["tensorboard"]
    envkit.resume_train(trained.run, display="quiet")
    assert len([*folder.iterdir()]) == before + 1
    envkit.resume_train(trained.run, trackers=[tracker.track], display="quiet")
    assert len([*folder.iterdir()]) == before + 1
    assert tracker.events == [("begin", trained.run.name), ("eval", 2), ("end", trained.run.name)]


def test_a_loaded_adapter_answers_and_exposes_its_model(trained: envkit.TrainResult) -> None:
    with envkit.load_adapter(trained.run, temperature=1.0) as adapter:
        assert adapter.path == trained.adapter
        first = [adapter.act("Mend it."), adapter.act("Once more.")]
        ids = adapter.tokenizer("Mend it.", return_tensors="pt")["input_ids"]
        assert adapter.model(ids).logits.shape[:2] == ids.shape  # a forward pass of the caller's own
        adapter.reset(seed=0)
        assert [adapter.act("Mend it."), adapter.act("Once more.")] == first
        assert adapter.model.active_adapter == "trained"
        assert [*adapter.model.peft_config] == ["trained"]
        assert adapter.tokenizer("x")["input_ids"]


def test_a_missing_adapter_is_refused(trained: envkit.TrainResult, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no adapter there"):
        envkit.load_adapter(tmp_path)
    with pytest.raises(UsageError, match="no checkpoint of step 99; it has: 2"):
        envkit.load_adapter(trained.run, step=99)


def test_an_evaluation_returns_rates_with_intervals(tmp_path: Path, heldout: Sequence[Task]) -> None:
    from envkit.taskfile import write_tasks

    write_tasks(tmp_path / "tasks.jsonl", heldout, seed=0)
    result = envkit.evaluate(agent="oracle", tasks=tmp_path / "tasks.jsonl", root=tmp_path, display="quiet")
    assert result.solve_rate.estimate == 1.0
    assert result.solve_rate.low < 1.0
    assert result.pass_at(1) == result.solve_rate
    assert result.pass_at(99) is None
    resumed = envkit.resume_bench(result.run, display="quiet")
    assert resumed.refused is None
    assert resumed.report.rows == ("oracle",)
    assert resumed.leaderboard.exists()
    again = envkit.rescore(result.run, root=tmp_path, display="quiet")
    assert (again.episodes, again.changed) == (2, ())


def test_a_signal_stops_a_run_that_can_be_resumed(
    tmp_path: Path, heldout: Sequence[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    from envkit.studies.bench import Bench
    from envkit.taskfile import write_tasks

    write_tasks(tmp_path / "tasks.jsonl", heldout, seed=0)
    run = Bench.run

    def interrupted(bench: Bench) -> list[Path]:
        signal.raise_signal(signal.SIGINT)
        return run(bench)

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "run", interrupted)
        spec = envkit.BenchSpec(
            (envkit.EnvironmentSpec("code-editor", str(tmp_path / "tasks.jsonl")),),
            (envkit.AgentSpec("oracle", script="oracle"),),
        )
        stopped = envkit.bench(spec, root=tmp_path, display="quiet")
    assert stopped.stopped_by is signal.SIGINT
    assert stopped.report.rows == ()
    resumed = envkit.resume_bench(stopped.run, display="quiet")
    assert resumed.stopped_by is None
    assert resumed.report.solve_rate("oracle").estimate == 1.0


def test_bad_input_is_refused_before_any_work(
    tmp_path: Path, heldout: Sequence[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TaskFileError, match="is of split 'heldout'; expected 'train'"):
        envkit.sft(tmp_path / "adapter", tasks=heldout, display="quiet")

    def work(*_: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("envkit.registry.sandbox_backend", work)
    with pytest.raises(UsageError, match="seed 1 is given twice"):
        envkit.train(seeds=[1, 1], display="quiet")
    with pytest.raises(UsageError, match=r"has no adapter_config\.json; expected the folder of an adapter"):
        envkit.train(warm_start=tmp_path, display="quiet")
    with pytest.raises(UsageError, match="display is 'loud'; expected 'rich', 'quiet' or a Display"):
        envkit.train(display="loud", allow_unaudited=True)  # pyright: ignore
    with pytest.raises(UsageError, match="no tracker is named 'comet'"):
        envkit.train(trackers=["comet"], display="quiet", allow_unaudited=True)
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    with pytest.raises(MissingExtraError, match=r"pip install 'envkit-rl\[wandb\]'"):
        envkit.train(trackers=["tensorboard", "wandb"], display="quiet", allow_unaudited=True)
    with pytest.raises(StoreError, match="not a run's manifest"):
        envkit.resume_train(tmp_path, display="quiet")
    with pytest.raises(UsageError, match="no agent to compare"):
        envkit.spec_of()


def test_an_adapter_is_measured_as_it_was_trained_unless_told_otherwise(
    trained: envkit.TrainResult,
) -> None:
    config = json.loads((trained.run / "manifest.json").read_text())["plan"]["train"]
    spec = envkit.spec_of(adapters=[trained.run], model=config["model"])
    base, adapter = spec.agents[-2:]
    assert adapter.adapter == str(trained.adapter)  # the newest checkpoint
    assert spec.max_turns == config["max_turns"]
    assert base.max_completion_length == adapter.max_completion_length == config["max_completion_length"]
    told = envkit.spec_of(adapters=[trained.run], model=config["model"], max_turns=2, max_completion_length=9)
    assert (told.max_turns, told.of(told.agents[-1]).max_completion_length) == (2, 9)
    with pytest.raises(UsageError, match="no adapter there"):
        envkit.spec_of(adapters=[trained.run / "tasks"])


def test_unknown_recorded_outputs_are_refused_before_the_controls_are_played(
    monkeypatch: pytest.MonkeyPatch, heldout: Sequence[Task], tmp_path: Path
) -> None:
    """Trying which tasks of a published benchmark can be graded takes minutes."""
    from envkit import ImportedTasks
    from envkit.environments.code_editor import CodeEditorEnv

    def play(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    def read(format: str, path: Path) -> ImportedTasks:
        return ImportedTasks(tuple(heldout), {"gpt": {}})

    monkeypatch.setattr("envkit.studies.bench_setup.validate_tasks", play)
    monkeypatch.setattr(CodeEditorEnv, "import_tasks", read)
    spec = envkit.spec_of(recorded=["wrong"], tasks="published:items")
    with pytest.raises(UsageError, match=r"no recorded outputs 'wrong' came with the tasks \(there is: gpt"):
        envkit.bench(spec, root=tmp_path, display="quiet")


def test_adapters_of_several_seeds_are_in_the_order_of_the_seeds(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "before-after-seeds", {"seeds": [2, 10]})
    wanted = [run.path / "seed-2" / "checkpoints" / "step-000004", run.path / "seed-10" / "sft"]
    for folder in wanted:
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    assert _adapters(run) == tuple(wanted)
