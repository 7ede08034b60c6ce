"""The Python interface: pinned signatures, typed results, and the commands as functions."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import golden
import pytest
import tiny
from hub_server import Hub
from recorder import Recorder

import envkit
from envkit.env.taskfile import write_tasks
from envkit.environments.code_editor import CodeEditorEnv, starter_tasks
from envkit.errors import MissingExtraError, ModelError, StoreError, TaskFileError, UsageError
from envkit.measure.report.page import load_report
from envkit.models import SMALL_MODEL
from envkit.runs.adapter import training_of
from envkit.runs.bench_runs import environment_for, trained_limits
from envkit.runs.common import absolute_if_path, short_tasks
from envkit.runs.folder.run_records import base_of
from envkit.runs.training import _adapters
from envkit.runtime.store import RunFolder
from envkit.studies.interference.setup import arms_of
from envkit.studies.specialists.router import first_prompts
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
    golden.expect(
        "public_api",
        {name: describe(getattr(envkit, name)) for names in envkit._LAZY.values() for name in names},
    )


def test_names_stay_functions_when_packages_are_imported() -> None:
    import envkit.measure.spec
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


PUBLISHED = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "base.json",
    "claim.json",
    "manifest.json",
}


def test_a_published_adapter_holds_its_own_files_and_nothing_hidden(
    trained: envkit.TrainResult, tmp_path: Path, heldout: Sequence[Task]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def evidence(folder: Path) -> list[Any]:
        [part] = json.loads((folder / "claim.json").read_text())["environments"]
        return [episode["info"].get("evidence") for episode in part["episodes"]]

    folder = tmp_path / "published"
    result = envkit.push_adapter(trained.run, "me/tiny", dry_run=folder)
    assert (result.adapter, result.url) == (trained.adapter, "")
    assert {*result.files} == {file.name for file in folder.iterdir()} == PUBLISHED
    assert {file.name for file in trained.adapter.iterdir()} > PUBLISHED  # the optimizer's state
    assert all(evidence(trained.adapter))
    assert not any(evidence(folder))
    model = Path(json.loads((trained.run / "manifest.json").read_text())["model"])
    texts = [file.read_text() for file in folder.iterdir() if file.suffix != ".safetensors"]
    assert not [text for text in texts if str(model.parent) in text]
    with pytest.raises(StoreError, match="cannot write"):
        envkit.push_adapter(trained.run, "me/tiny", dry_run=folder)
    # A stranger can load and verify it.
    assert envkit.verify(folder, tasks=heldout, model=model, display="quiet").reproduced
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of transformers, for PEFT
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), folder)
    assert loaded.peft_config["default"].r == 2
    with envkit.load_adapter(folder, model=model) as adapter:
        assert adapter.act("Mend it.")
    without = tmp_path / "without"
    envkit.push_adapter(trained.run, "me/tiny", claim=False, dry_run=without)
    assert {file.name for file in without.iterdir()} == PUBLISHED - {"claim.json"}
    assert "`envkit verify` cannot replay it" in (without / "README.md").read_text()


def test_a_model_card_says_what_was_trained_and_measured(trained: envkit.TrainResult, tmp_path: Path) -> None:
    import yaml

    envkit.push_adapter(trained.run, "me/tiny", dry_run=tmp_path / "published")
    card = (tmp_path / "published" / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["envkit", "lora", "grpo", "code-editor"],
    }
    manifest = json.loads((trained.run / "manifest.json").read_text())
    report = load_report(trained.run)
    assert "2 steps of reinforcement learning" in body
    assert "This adapter is the row **RL**." in body
    rate = trained.report.solve_rate("RL")
    assert f"| RL | 2 | {100 * rate.estimate:.1f} | [{100 * rate.low:.1f}, {100 * rate.high:.1f}] |" in body
    assert f"certificate: `{report.certificate}`" in body
    for digest in (*manifest["tasks"].values(), manifest["code"], manifest["model_digest"]):
        assert f"`{digest}`" in body
    assert all(warning in body for warning in report.warnings)
    assert "| lora_r | 2 |" in body
    assert "envkit verify adapter" in body


def test_an_adapter_without_its_run_has_a_card_of_what_is_known(
    trained: envkit.TrainResult, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(trained.adapter, tmp_path / "adapter"))
    envkit.push_adapter(adapter, "me/tiny", dry_run=tmp_path / "published")
    card = (tmp_path / "published" / "README.md").read_text()
    assert "was not measured, or its measurements are not beside it" in card
    assert f"certificate: `{load_report(trained.run).certificate}`" in card  # of the claim
    envkit.push_adapter(adapter, "me/tiny", measured_in=trained.run, dry_run=tmp_path / "measured")
    assert "This adapter is the row **RL**." in (tmp_path / "measured" / "README.md").read_text()
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=r"safetensors differs from its manifest"):
        envkit.push_adapter(adapter, "me/tiny", dry_run=tmp_path / "damaged")
    (adapter / "manifest.json").unlink()
    with pytest.raises(ModelError, match=r"claim\.json is of other weights"):
        envkit.push_adapter(adapter, "me/tiny", dry_run=tmp_path / "damaged")
    (adapter / "claim.json").unlink()
    with pytest.raises(UsageError, match="did not measure the adapter"):
        envkit.push_adapter(adapter, "me/tiny", measured_in=trained.run, dry_run=tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


def test_an_adapter_is_pushed_to_the_hub(
    trained: envkit.TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with Hub("hf_right") as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        result = envkit.push_adapter(trained.run, "me/tiny", private=True)
        assert result.url == f"{hub.url}/me/tiny"
        assert hub.private == {"me/tiny": True}
        envkit.push_adapter(trained.run, "me/tiny", dry_run=tmp_path / "published")
        assert hub.files["me/tiny"] == {
            file.name: file.read_bytes() for file in (tmp_path / "published").iterdir()
        }
        envkit.push_adapter(trained.run, "me/tiny", claim=False)
        assert {*hub.files["me/tiny"]} == PUBLISHED - {"claim.json"}  # the older claim is gone
        hub.private["me/tiny"] = False
        with pytest.raises(UsageError, match="me/tiny is public already; make it private on the hub"):
            envkit.push_adapter(trained.run, "me/tiny", private=True)
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(UsageError, match=r"the hub did not take me/other \(HfHubHTTPError: .*401"):
            envkit.push_adapter(trained.run, "me/other")
        assert [*hub.files] == ["me/tiny"]


def test_without_a_token_or_an_owner_nothing_is_pushed(
    trained: envkit.TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("envkit.runs.folder.publishing.write_publication", write)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UsageError, match="no token of the Hugging Face Hub; log in with `hf auth login`"):
        envkit.push_adapter(trained.run, "me/tiny")
    with pytest.raises(UsageError, match="'tiny' has no owner; expected owner/name"):
        envkit.push_adapter(trained.run, "tiny")
    with pytest.raises(UsageError, match=r"repository 'me/ti ny': .*"):
        envkit.push_adapter(trained.run, "me/ti ny")
    with pytest.raises(UsageError, match="no adapter there"):
        envkit.push_adapter(tmp_path, "me/tiny")


def test_a_missing_adapter_is_refused(trained: envkit.TrainResult, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no adapter there"):
        envkit.load_adapter(tmp_path)
    with pytest.raises(UsageError, match="no checkpoint of step 99; it has: 2"):
        envkit.load_adapter(trained.run, step=99)


def test_an_evaluation_returns_rates_with_intervals(tmp_path: Path, heldout: Sequence[Task]) -> None:
    from envkit.env.taskfile import write_tasks

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
    from envkit.env.taskfile import write_tasks
    from envkit.runs.benchmark.bench import Bench

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
    with pytest.raises(UsageError, match="at most 5 characters"):
        envkit.sft(tmp_path / "adapter", max_task_chars=5, display="quiet")

    def work(*_: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("envkit.sandbox.choice.sandbox_backend", work)
    mix = {"mix": [{"env": "code-editor"}, {"env": "sql-desk"}]}
    with pytest.raises(UsageError, match="mix names code-editor, sql-desk, and service-desk is asked for"):
        envkit.train("service-desk", config=mix)
    with pytest.raises(UsageError, match="task files are for one environment"):
        envkit.train(config=mix, tasks=tmp_path / "tasks.jsonl")
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
        envkit.bench_spec()


class Named(Exception):
    """Raised with the name of the environment that is asked for."""


def test_a_call_for_one_environment_takes_the_one_of_the_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def environment(name: str) -> None:
        raise Named(name)

    monkeypatch.setattr("envkit.env.registry.environment", environment)
    for call in (envkit.support, envkit.search_prompt, partial(envkit.sft, tmp_path / "adapter")):
        for mix, named in (([], "code-editor"), (["sql-desk"], "sql-desk")):
            with pytest.raises(Named, match=named):
                call(config={"mix": [{"env": name} for name in mix]}, display="quiet")
        several: dict[str, Any] = {"mix": [{"env": "code-editor"}, {"env": "sql-desk"}]}
        with pytest.raises(UsageError, match=r"mix names code-editor, sql-desk.*; name one with --env"):
            call(config=several, display="quiet")
        with pytest.raises(Named, match="sql-desk"):
            call(environment="sql-desk", config=several, display="quiet")


def test_a_model_that_cannot_be_trained_is_refused_before_tasks_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("envkit.runs.training.load_tasks", load)
    monkeypatch.setattr("envkit.runs.common.load_tasks", load)  # of the calls that only play
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    train = partial(envkit.train, allow_unaudited=True, root=tmp_path / "runs", display="quiet")
    with pytest.raises(ModelError, match="model 'mistyped': found nothing"):
        train(model="mistyped")
    with pytest.raises(ModelError, match="model 'mistyped': found nothing"):
        envkit.sft(tmp_path / "adapter", model="mistyped", display="quiet")
    for play in (envkit.support, envkit.search_prompt):
        with pytest.raises(ModelError, match="model 'mistyped': found nothing"):
            play(model="mistyped", root=tmp_path / "runs", display="quiet")
    model = str(tiny.make(tmp_path / "model").path)
    with pytest.raises(ModelError, match="finds no NVIDIA GPU"):
        train(config={"device": "cuda", "model": model})
    tiny.policy(tiny.make(tmp_path / "other", "qwen2")).save_adapter(tmp_path / "start")
    with pytest.raises(ModelError, match="start was trained on tiny-qwen2 with weights"):
        train(model=model, warm_start=tmp_path / "start")


def test_an_adapter_is_measured_as_it_was_trained_unless_told_otherwise(
    trained: envkit.TrainResult,
) -> None:
    config = json.loads((trained.run / "manifest.json").read_text())["plan"]["train"]
    spec = envkit.bench_spec(adapters=[trained.run], model=config["model"])
    base, adapter = spec.agents[-2:]
    assert adapter.adapter == str(trained.adapter)  # the newest checkpoint
    assert [each.name for each in spec.environments] == ["code-editor"]
    assert spec.max_turns == config["max_turns"]
    assert base.max_completion_length == adapter.max_completion_length == config["max_completion_length"]
    told = envkit.bench_spec(
        adapters=[trained.run], model=config["model"], max_turns=2, max_completion_length=9
    )
    assert (told.max_turns, told.of(told.agents[-1]).max_completion_length) == (2, 9)
    with pytest.raises(UsageError, match="no adapter there"):
        envkit.bench_spec(adapters=[trained.run / "tasks"])


def test_what_an_adapter_was_trained_on_is_not_held_out(
    tmp_path: Path, trained: envkit.TrainResult, tasks: Sequence[Task], heldout: Sequence[Task]
) -> None:
    """A task file may say otherwise, for example after its sources were divided anew."""
    known = [replace(task, split="heldout") for task in tasks[:2]]
    write_tasks(tmp_path / "known.jsonl", known, 0)
    fault = "an adapter was trained on 2 sources of the held-out tasks, such as "
    model = json.loads((trained.run / "manifest.json").read_text())["plan"]["train"]["model"]
    with pytest.raises(TaskFileError, match=fault):
        envkit.evaluate(adapter=trained.run, model=model, tasks=tmp_path / "known.jsonl", display="quiet")
    with pytest.raises(TaskFileError, match=fault):
        envkit.train(
            config={"model": model, "lora_r": 2, "sft_examples": 0, "warm_start": str(trained.adapter)},
            tasks=[replace(task, split="train") for task in heldout],
            heldout_tasks=known,
            allow_unaudited=True,
            root=tmp_path / "runs",
            display="quiet",
        )


def test_an_adapter_is_measured_on_the_environment_that_it_was_trained_on(tmp_path: Path) -> None:
    def adapter_of(*environments: str) -> Path:
        manifest: dict[str, Any] = {"environments": [*environments], "plan": {"train": {}}}
        run = RunFolder.create(tmp_path, "before-after", manifest)
        run.journal("phases").close()
        return run.path / "sft"

    desk, editor = adapter_of("sql-desk"), adapter_of("code-editor")
    assert environment_for("", [desk, desk]) == (
        "sql-desk",
        "environment: sql-desk, because the adapter was trained on it",
    )
    assert environment_for("", [editor]) == environment_for("", []) == ("code-editor", "")
    unknown = "environment: code-editor, the default: what the adapter plays is not known"
    assert environment_for("", [tmp_path]) == ("code-editor", unknown)
    assert environment_for("service-desk", [desk]) == ("service-desk", "")
    both = adapter_of("sql-desk", "code-editor")
    for several in ([desk, editor], [both]):
        with pytest.raises(UsageError, match=r"trained on sql-desk, code-editor; name the environment"):
            environment_for("", several)
    both.mkdir()
    (both / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"trained on sql-desk, code-editor; name the environment"):
        envkit.compare_controls([both], display="quiet")


def test_the_base_of_adapters_is_that_of_their_runs_or_else_of_their_folders(tmp_path: Path) -> None:
    def adapter_of(model: str, run: bool = True) -> Path:
        folder = tmp_path / f"loose-{model.replace('/', '-')}"
        if run:
            trained = RunFolder.create(tmp_path, "before-after", {"plan": {"train": {"model": model}}})
            trained.journal("phases").close()
            folder = trained.path / "sft"
        folder.mkdir()
        (folder / "base.json").write_text(json.dumps({"model": Path(model).name if run else model}))
        return folder

    model = tmp_path / "own"
    model.mkdir()
    own, another = adapter_of(str(model)), adapter_of("smollm2-135m-q4")
    loose, of_hub = adapter_of("own", run=False), adapter_of("Qwen/Qwen3-0.6B", run=False)
    assert base_of([own]) == base_of([loose, own]) == str(model)  # its folder names "own" alone
    assert base_of([another, another, tmp_path]) == "smollm2-135m-q4"
    assert base_of([of_hub]) == base_of([of_hub, loose]) == "Qwen/Qwen3-0.6B"
    assert base_of([]) == base_of([tmp_path]) == ""
    with pytest.raises(UsageError, match=f"several bases: {model}, smollm2-135m-q4; take those of one"):
        base_of([own, another])
    model.rmdir()
    for adapter in (loose, own):
        with pytest.raises(
            ModelError, match="was trained on a model in a folder 'own'; name it with --model"
        ):
            base_of([adapter])


def test_an_adapter_in_a_run_that_did_not_train_it_is_taken_as_one_in_no_run(tmp_path: Path) -> None:
    """Such as a steering vector in the folder of the `support` run that it was computed from."""
    run = RunFolder.create(tmp_path, "support", {"kind": "support", "environment": "sql-desk"})
    run.journal("phases").close()
    vector = run.path / "steering"
    assert training_of(vector) == (None, None)
    assert base_of([vector]) == ""
    assert trained_limits([vector]) == {}
    assert environment_for("", [vector])[0] == "code-editor"
    with pytest.raises(UsageError, match="is in no training run, so what it was trained on is not known"):
        arms_of([vector])
    with pytest.raises(UsageError, match="is in no training run, so its prompts are not known"):
        first_prompts(vector, 1, 0)


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

    monkeypatch.setattr("envkit.runs.benchmark.setup.validate_tasks", play)
    monkeypatch.setattr(CodeEditorEnv, "import_tasks", read)
    spec = envkit.bench_spec(recorded=["wrong"], tasks="published:items")
    with pytest.raises(UsageError, match=r"no recorded outputs 'wrong' came with the tasks \(there is: gpt"):
        envkit.bench(spec, root=tmp_path, display="quiet")


def test_adapters_of_several_seeds_are_in_the_order_of_the_seeds(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "before-after-seeds", {"seeds": [2, 10]})
    wanted = [run.path / "seed-2" / "checkpoints" / "step-000004", run.path / "seed-10" / "sft"]
    for folder in wanted:
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    assert _adapters(run) == tuple(wanted)


def test_a_folder_does_not_hide_the_model_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("auto", SMALL_MODEL, "own"):
        (tmp_path / name).mkdir()
    assert [absolute_if_path(name) for name in ("auto", SMALL_MODEL, "own", "none")] == [
        "auto",
        SMALL_MODEL,
        str(tmp_path / "own"),
        "none",
    ]
