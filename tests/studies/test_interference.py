"""`envkit study interference`, from training runs to the matrix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner

import envkit
from envkit.cli.main import app
from envkit.errors import StoreError, UsageError
from envkit.runtime.store import RunFolder
from envkit.studies.interference.setup import arms_of
from envkit.training.config import Mix

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_probe")]

ENVIRONMENTS = ("sql-desk", "service-desk")
STEPS, GROUPS, GENERATIONS = 2, 4, 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, one_probe: None) -> list[Path]:
    """Two specialists, and two adapters of both environments."""
    folder = tmp_path_factory.mktemp("interference")
    config = {
        "model": str(tiny.make(folder / "model").path),
        "lora_r": 2,
        "sft_examples": 0,
        "max_steps": STEPS,
        "groups_per_step": GROUPS,
        "num_generations": GENERATIONS,
        "max_completion_length": 4,
        "max_turns": 1,
    }
    both = [vars_of(Mix("sql-desk", 3)), vars_of(Mix("service-desk"))]
    return [
        envkit.train(
            environments,
            config={**config, **more},
            evaluate=False,
            allow_unaudited=True,
            root=folder / "runs",
            display="quiet",
        ).run
        for environments, more in (
            ("sql-desk", {}),
            ("service-desk", {}),
            (ENVIRONMENTS, {}),
            (None, {"mix": both, "worst_task_weight": 4}),
        )
    ]


def test_an_adapter_that_began_with_more_than_a_warm_start_is_refused(
    runs: list[Path], tmp_path: Path
) -> None:
    copied = tmp_path / "later"
    shutil.copytree(runs[1], copied)
    manifest = json.loads((copied / "manifest.json").read_text())
    adapter = copied / "checkpoints" / f"step-{STEPS:06}"
    for begun, words in (
        (
            runs[0] / "checkpoints" / f"step-{STEPS:06}",
            "had learned more than a warm start of service-desk teaches",
        ),
        (tmp_path / "none" / "sft", "what that had learned is not known"),
    ):
        manifest["plan"]["train"]["warm_start"] = str(begun)
        (copied / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UsageError, match=words):
            arms_of([adapter])


def test_known_answers_are_counted_by_the_run(runs: list[Path], tmp_path: Path) -> None:
    copied = tmp_path / "imitating"
    shutil.copytree(runs[2], copied)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["plan"]["train"]["sft_examples"] = 24
    (copied / "manifest.json").write_text(json.dumps(manifest))
    [arm] = arms_of([copied / "checkpoints" / f"step-{STEPS:06}"])
    assert arm.known_answers == 24


def vars_of(mix: Mix) -> dict[str, object]:
    return {"env": mix.env, "weight": mix.weight}


def test_adapters_are_named_and_counted_by_their_runs(runs: list[Path]) -> None:
    arms = arms_of([run / "checkpoints" / f"step-{STEPS:06}" for run in runs])
    assert [arm.row for arm in arms] == ["only sql-desk", "only service-desk", "joint", "joint, worst 4"]
    episodes = STEPS * GROUPS * GENERATIONS
    assert [dict(arm.episodes) for arm in arms[:3]] == [
        {"sql-desk": episodes},
        {"service-desk": episodes},
        {"sql-desk": episodes // 2, "service-desk": episodes // 2},
    ]
    assert sum(arms[3].episodes.values()) == episodes
    assert [arm.known_answers for arm in arms] == [0] * 4
    assert arms[3].episodes["sql-desk"] > arms[3].episodes["service-desk"]


def test_the_matrix_of_real_runs_can_be_made_again(runs: list[Path], tmp_path: Path) -> None:
    options = ["--limit", "2", "--samples", "1", "--merge", "cat", "--root", str(tmp_path), "--json"]
    said = CliRunner().invoke(app, ["study", "interference", *map(str, runs), *options])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert [arm["row"] for arm in found["matrix"]["arms"]] == [
        *("base", "only sql-desk", "only service-desk", "joint", "joint, worst 4", "merged cat")
    ]
    assert found["matrix"]["environments"] == [*ENVIRONMENTS]
    page = Path(found["page"])
    before = page.read_text()
    assert "its specialist on 16" in before  # the joint ones had half as many episodes of each
    page.unlink()
    again = envkit.resume_interference(found["run"], display="quiet")
    assert again.page is not None
    assert again.page.read_text() == before
    shown = CliRunner().invoke(app, ["study", "interference", "--resume", found["run"]])
    assert "merged cat, within 5.0 points of every specialist" in shown.stdout


def test_what_cannot_be_compared_is_refused_before_any_work(runs: list[Path], tmp_path: Path) -> None:
    desk, shell, joint, _ = runs
    with pytest.raises(UsageError, match="all runs trained on sql-desk; expected two or more"):
        envkit.interference([desk], display="quiet")
    with pytest.raises(UsageError, match="no run trained on service-desk alone"):
        envkit.interference([desk, joint], display="quiet")
    with pytest.raises(UsageError, match="two runs are only sql-desk"):
        envkit.interference([desk, desk, shell], display="quiet")
    with pytest.raises(UsageError, match="nothing is merged"):
        envkit.interference([desk, shell], merge=[], display="quiet")
    with pytest.raises(UsageError, match="no way to merge is named 'mean'"):
        envkit.interference([desk, shell], merge=["mean"], root=tmp_path, display="quiet")
    for option, words in (
        ({"split": "tset"}, "split is 'tset'"),
        ({"limit": 0}, "limit is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"sandbox": "nope"}, "'nope'"),
    ):
        wrong: dict[str, Any] = option
        with pytest.raises(UsageError, match=words):
            envkit.interference([desk, shell], **wrong, root=tmp_path / "merged", display="quiet")
    assert not (tmp_path / "merged").exists()
    run = RunFolder.create(tmp_path, "bench", {})
    with pytest.raises(StoreError, match="expected a run of `envkit study interference`"):
        envkit.resume_interference(run.path, display="quiet")
