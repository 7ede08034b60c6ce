"""`envkit study controls`, from adapters to the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

import envkit
from envkit.cli.main import app
from envkit.errors import ModelError, StoreError, UsageError
from envkit.models.adapter_folder import BASE, MANIFEST
from envkit.runtime.store import RunFolder
from envkit.studies.controls.setup import KL_FILE, control_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_probe")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, one_probe: None) -> dict[str, Path]:
    """A warm start, RL of LoRA behind it, and RL of a steering vector."""
    folder = tmp_path_factory.mktemp("controls")
    config = {
        "model": str(tiny.make(folder / "model").path),
        "lora_r": 2,
        "groups_per_step": 2,
        "num_generations": 2,
        "max_completion_length": 4,
        "max_turns": 1,
        "save_steps": 1,
    }
    made: dict[str, Path] = {}
    for name, more in (
        ("warm", {"sft_examples": 24, "max_steps": 0}),
        ("lora", {"max_steps": 2, "sft_examples": 0}),
        ("vectors", {"max_steps": 1, "sft_examples": 0, "control": "steering", "learning_rate": 0.1}),
    ):
        warm_start = made["warm"] / "sft" if name == "lora" else None
        made[name] = envkit.train(
            "sql-desk",
            config={**config, **more},
            warm_start=warm_start,
            evaluate=False,
            allow_unaudited=True,
            root=folder / name,
            display="quiet",
        ).run
    return made


def test_adapters_are_described_by_their_folders_and_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    lora = control_of("lora", runs["lora"] / "checkpoints" / "step-000002")
    assert (lora.control, lora.rank, lora.examples) == ("all-linear", 2, 24)
    sampled = [record["completion_tokens"] for record in RunFolder.open(runs["lora"]).records("metrics")]
    assert lora.sampled_tokens == sum(sampled) > 0
    first = control_of("first", runs["lora"] / "checkpoints" / "step-000001")
    assert first.sampled_tokens == sampled[0]
    warm = control_of("warm", runs["warm"] / "sft")
    assert (warm.examples, warm.sampled_tokens) == (24, 0)
    vectors = control_of("vectors", runs["vectors"] / "checkpoints" / "step-000001")
    assert (vectors.control, vectors.rank, vectors.examples) == ("steering", 0, 0)
    assert 0 < vectors.size_bytes < lora.size_bytes
    policy = tiny.policy(tiny.make(tmp_path / "model"))
    policy.save_adapter(tmp_path / "alone")
    alone = control_of("alone", tmp_path / "alone")
    assert (alone.examples, alone.sampled_tokens) == (None, None)
    (tmp_path / "alone" / BASE).unlink()
    with pytest.raises(UsageError, match="was not saved by envkit"):
        control_of("alone", tmp_path / "alone")
    (tmp_path / "alone" / "adapter_model.safetensors").unlink()
    with pytest.raises(StoreError, match="the adapter cannot be read"):
        control_of("alone", tmp_path / "alone")


def test_the_comparison_can_be_made_again(runs: dict[str, Path], tmp_path: Path) -> None:
    options = ["--limit", "2", "--samples", "1", "--kl-tasks", "2", "--root", str(tmp_path), "--json"]
    said = CliRunner().invoke(app, ["study", "controls", str(runs["lora"]), str(runs["vectors"]), *options])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    rows = {row["control"]["row"]: row for row in found["found"]["rows"]}
    assert [row["control"]["control"] for row in rows.values()] == ["none", "all-linear", "steering"]
    assert all(row["kl"]["estimate"] is not None for row in rows.values())
    assert rows["base"]["kl"]["estimate"] == 0
    run, page = Path(found["run"]), Path(found["page"])
    text = page.read_text()
    page.unlink()
    kept = json.loads((run / KL_FILE).read_text())
    again = envkit.resume_controls(run, display="quiet")
    assert again.page == page
    assert page.read_text() == text
    assert json.loads((run / KL_FILE).read_text()) == kept


def test_bad_input_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one adapter"):
        envkit.compare_controls([], display="quiet")
    with pytest.raises(StoreError, match=r"controls\.json cannot be read"):
        envkit.resume_controls(runs["lora"], display="quiet")
    said = CliRunner().invoke(app, ["study", "controls", str(runs["lora"]), "--resume", str(tmp_path)])
    assert said.exit_code != 0


def test_the_divergence_of_an_adapter_with_another_scale_is_not_measured(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(runs["lora"] / "checkpoints" / "step-000002", adapter)
    (adapter / MANIFEST).unlink()
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "use_rslora": True}))
    with pytest.raises(ModelError, match="use_rslora is set; expected one rank and one plain scale"):
        envkit.compare_controls([adapter], model="any", root=tmp_path / "runs", display="quiet")
    assert not (tmp_path / "runs").exists()
