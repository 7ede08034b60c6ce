"""The trackers of real libraries, without a network. Those that are not installed are skipped."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from envkit.training.trackers import TrackedRun, open_trackers, resolve

CONFIG = {"learning_rate": 1e-4, "stop_strings": ["\n"], "shaping": {"tries": 0.2}, "max_kl": None}
#: Steps of a run that is stopped after its second RL step and resumed from its first.
BEFORE = [
    ("sft", 1, {"loss": 2.0}),
    ("sft", 2, {"loss": 1.0}),
    ("rl", 1, {"reward": 0.25}),
    ("rl", 2, {"reward": 0.0}),
]
AFTER = [
    ("rl", 2, {"reward": 0.5}),
    ("rl", 3, {"reward": 0.75}),
    ("eval", 3, {"code-editor/trained/pass_at_1": 0.5}),
]


def installed(package: str, extra: str) -> Any:
    """Import a library, or skip the test."""
    with warnings.catch_warnings():  # its own
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            package, reason=f"{package} is not installed: pip install 'envkit-rl[{extra}]'"
        )


def track(name: str, run: TrackedRun, steps: Sequence[tuple[str, int, dict[str, float]]]) -> None:
    """Log steps as one process does."""
    with open_trackers(resolve([name]), run, pytest.fail) as log:
        for step in steps:
            log(*step)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackedRun:
    monkeypatch.chdir(tmp_path)  # some keep their files here
    folder = tmp_path / "runs" / "r-1"
    folder.mkdir(parents=True)
    return TrackedRun("r-1", "", folder, CONFIG)


def seeds_of(run: TrackedRun) -> list[TrackedRun]:
    parts = [TrackedRun(f"g-1-seed-{seed}", "g-1", run.folder / f"seed-{seed}", CONFIG) for seed in (1, 2)]
    for part in parts:
        part.folder.mkdir()
    return parts


def test_tensorboard_shows_every_step_and_the_settings(run: TrackedRun) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", run, BEFORE)
    [file] = (run.folder / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    assert {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]} == {
        "sft/loss": [(1, 2.0), (2, 1.0)],
        "rl/reward": [(1, 0.25), (2, 0.0)],
    }
    [text] = events.Tensors("config/text_summary")
    assert b'"learning_rate": 0.0001' in text.tensor_proto.string_val[0]
    track("tensorboard", run, AFTER)
    assert len([*(run.folder / "tensorboard").iterdir()]) == 2


def test_a_tensorboard_that_cannot_be_written_is_refused(run: TrackedRun) -> None:
    from envkit.errors import UsageError

    (run.folder / "tensorboard").write_text("a file")
    with pytest.raises(UsageError, match="tracker tensorboard cannot begin"):
        track("tensorboard", run, BEFORE)


def test_wandb_continues_a_run_and_groups_its_seeds(run: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = installed("wandb", "wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)

    def files(part: TrackedRun) -> list[bytes]:
        wandb.teardown()  # as a process does at its end; until then, W&B's own process may still write
        found = (part.folder / "wandb").glob(f"offline-run-*/run-{part.id}.wandb")
        return [file.read_bytes() for file in sorted(found, key=lambda file: file.parent.name)]

    track("wandb", run, BEFORE)
    track("wandb", run, AFTER)
    before, after = files(run)  # `wandb sync` sends both to the run of this id
    for word in (b"learning_rate", b"sft/loss", b"rl/reward", b"rl/step"):
        assert word in before
    for word in (b"rl/reward", b"0.75", b"eval/code-editor/trained/pass_at_1"):
        assert word in after
    one, two = seeds_of(run)
    trackers = resolve(["wandb"])
    with open_trackers(trackers, one, pytest.fail) as log, open_trackers(trackers, two, pytest.fail) as other:
        log("rl", 1, {"reward": 0.125})
        other("rl", 1, {"reward": 0.875})
        log("rl", 2, {"reward": 0.0625})
    [first], [second] = files(one), files(two)
    assert b"0.125" in first
    assert b"0.0625" in first
    assert b"0.875" not in first
    assert b"0.875" in second


def test_trackio_continues_a_run_and_groups_its_seeds(
    run: TrackedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed("trackio", "trackio")
    from trackio import sqlite_storage  # pyright: ignore

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", run.folder)
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    storage = sqlite_storage.SQLiteStorage

    def rewards(name: str) -> list[tuple[int, float]]:
        return [
            (row["step"], row["rl/reward"]) for row in storage.get_logs("mine", name) if "rl/reward" in row
        ]

    track("trackio", run, BEFORE)
    track("trackio", run, AFTER)
    assert storage.get_runs("mine") == ["r-1"]
    assert rewards("r-1") == [(1, 0.25), (2, 0.0), (2, 0.5), (3, 0.75)]
    assert storage.get_run_config("mine", "r-1")["learning_rate"] == 1e-4
    one, two = seeds_of(run)
    trackers = resolve(["trackio"])
    with open_trackers(trackers, one, pytest.fail) as log, open_trackers(trackers, two, pytest.fail) as other:
        log("rl", 1, {"reward": 0.125})
        other("rl", 1, {"reward": 0.875})
        log("rl", 2, {"reward": 0.0625})
    assert rewards("g-1-seed-1") == [(1, 0.125), (2, 0.0625)]
    assert rewards("g-1-seed-2") == [(1, 0.875)]
    assert storage.get_run_config("mine", "g-1-seed-2")["_Group"] == "g-1"
    assert capsys.readouterr().out == ""  # stdout is for results


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch, run: TrackedRun) -> Any:
    library = installed("mlflow", "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{run.folder / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")  # the tracker sets those that are not there
    with warnings.catch_warnings():  # its own, and SQLAlchemy's
        warnings.simplefilter("ignore")
        yield library


def runs(mlflow: Any) -> dict[str, Any]:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("mine").experiment_id
    return {found.info.run_name: found for found in client.search_runs([experiment])}


def test_mlflow_continues_a_run_and_nests_its_seeds(mlflow: Any, run: TrackedRun) -> None:
    track("mlflow", run, BEFORE)
    track("mlflow", run, AFTER)
    [found] = runs(mlflow).values()
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "rl/reward")
    assert sorted((point.step, point.value) for point in history) == [
        (1, 0.25),
        (2, 0.0),
        (2, 0.5),
        (3, 0.75),
    ]
    assert found.data.metrics["eval/code-editor/trained/pass_at_1"] == 0.5
    assert found.data.params["learning_rate"] == "0.0001"
    assert (found.info.status, found.data.tags["envkit.run"]) == ("FINISHED", "r-1")
    one, two = seeds_of(run)
    trackers = resolve(["mlflow"])
    with open_trackers(trackers, one, pytest.fail) as log, open_trackers(trackers, two, pytest.fail) as other:
        log("rl", 1, {"reward": 0.125})
        other("rl", 1, {"reward": 0.875})
    made = runs(mlflow)
    assert made["g-1-seed-2"].data.metrics == {"rl/reward": 0.875}
    assert {made[f"g-1-seed-{seed}"].data.tags["mlflow.parentRunId"] for seed in (1, 2)} == {
        made["g-1"].info.run_id
    }


def test_an_mlflow_that_breaks_while_a_run_trains_is_left_out(mlflow: Any, run: TrackedRun) -> None:
    said: list[str] = []
    with open_trackers(resolve(["mlflow"]), run, said.append) as log:
        log("rl", 1, {"reward": 0.25})
        with sqlite3.connect(run.folder / "mlflow.db") as database:
            database.execute("DROP TABLE metrics")
        log("rl", 2, {"reward": 0.5})
        log("rl", 3, {"reward": 0.5})
    [warning] = said
    assert warning.startswith(
        "tracker mlflow failed at step 2 of phase rl and is left out from here on (Mlflow"
    )
