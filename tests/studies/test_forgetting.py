"""`envkit.forgetting`: an adapter against its base, on other text and on its own task."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from typer.testing import CliRunner

import envkit
from envkit import UsageError
from envkit.cli.main import app
from envkit.env.registry import environment, sandbox_backend
from envkit.environments.code_editor import starter_tasks
from envkit.measure.stats import Interval
from envkit.runtime.display import Silent
from envkit.studies.forgetting.measure import Forgetting, TextLoss, movement, text_loss
from envkit.studies.forgetting.passages import Passage, passages_of
from envkit.training.config import TrainConfig
from envkit.training.policy import Policy
from envkit.types import Task

PASSAGES = [
    Passage(f"file {number}", f"The {number} brown foxes jump over {number * 7} dogs.") for number in range(5)
]
CONFIG = TrainConfig(max_completion_length=6, max_turns=1, temperature=0.5)


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy(tiny.make(tmp_path / "model"), lora_r=2, lora_alpha=4)


def shake(policy: Policy, size: float) -> None:
    """Change the adapter; a new one changes nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in policy.trainable():
            part.add_(size * torch.randn(part.shape, generator=generator))


def heldout() -> list[Task]:
    return [replace(task, split="heldout") for task in starter_tasks()[:3]]


def test_a_new_adapter_has_forgotten_nothing(policy: Policy) -> None:
    found = text_loss(policy, PASSAGES, Silent())
    assert found.passages == 5
    assert found.base == found.adapter
    assert (found.rise.low, found.rise.high) == (0, 0)
    kind = environment("code-editor")
    moved = movement(policy, CONFIG, kind, heldout(), sandbox_backend("auto"), Silent())
    assert moved is not None
    assert moved.episodes == 3
    assert moved.kl.estimate == pytest.approx(0, abs=1e-9)


def test_the_loss_is_that_of_transformers(policy: Policy) -> None:
    shake(policy, 0.2)
    found = text_loss(policy, PASSAGES[:1], Silent())
    ids = torch.tensor([policy.renderer.plain(PASSAGES[0].text)])
    policy.model.set_attn_implementation("eager")
    with torch.no_grad():
        whole = policy.model(input_ids=ids, labels=ids).loss
        with policy.model.disable_adapter():
            alone = policy.model(input_ids=ids, labels=ids).loss
    assert found.adapter.estimate == pytest.approx(float(whole), abs=1e-4)
    assert found.base.estimate == pytest.approx(float(alone), abs=1e-4)
    assert found.rise.estimate == pytest.approx(float(whole - alone), abs=2e-4)
    assert found.tokens == ids.shape[1] - 1


def test_further_from_the_base_is_further_by_both_measures(policy: Policy) -> None:
    kind, backend = environment("code-editor"), sandbox_backend("auto")
    moved: list[float] = []
    risen: list[float] = []
    for size in (0.1, 0.3):
        shake(policy, size)
        found = movement(policy, CONFIG, kind, heldout(), backend, Silent())
        assert found is not None
        moved.append(found.kl.estimate)
        risen.append(abs(text_loss(policy, PASSAGES, Silent()).rise.estimate))
    assert 0 < moved[0] < moved[1]
    assert 0 < risen[0] < risen[1]


def test_passages_of_files_and_packages(tmp_path: Path) -> None:
    file = tmp_path / "text.md"
    file.write_text("\n\n".join(f"Paragraph {number}. {'word ' * 30}" for number in range(20)))
    some = passages_of([file], "numpy", 4)
    assert len(some) == 4
    assert all(200 <= len(passage.text) <= 2_000 for passage in some)
    assert passages_of([file], "numpy", 4) == some
    assert passages_of([file], "numpy", 4, seed=1) != some
    of_package = passages_of([], "numpy", 50)
    assert len({passage.source for passage in of_package}) > 5


@pytest.mark.parametrize(
    ("texts", "package", "words"),
    [
        (["absent.txt"], "numpy", "cannot be read"),
        (["latin.txt"], "numpy", "not text in UTF-8"),
        (["/dev/zero"], "numpy", "cannot be read"),
        (["short.txt"], "numpy", "no passage of 200 characters"),
        ([], "no_such_package", "no package 'no_such_package' is installed"),
        ([], "os", "no package 'os'"),
        ([], "a.b", "no package 'a.b'"),
    ],
)
def test_what_has_no_text_is_refused(tmp_path: Path, texts: list[str], package: str, words: str) -> None:
    (tmp_path / "latin.txt").write_bytes(b"\xe4" * 300)
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(UsageError, match=words):
        passages_of([tmp_path / name for name in texts], package, 8)


def test_the_command_reads_the_run(policy: Policy, tmp_path: Path) -> None:
    shake(policy, 0.3)
    policy.save_adapter(tmp_path / "adapter")
    file = tmp_path / "text.md"
    file.write_text("\n\n".join("".join(f"word{number * k} " for k in range(40)) for number in range(6)))
    model = str(policy.ref.path)
    command = [
        "study",
        "forgetting",
        str(tmp_path / "adapter"),
        "--text",
        str(file),
        "--model",
        model,
        "--limit",
        "3",
    ]
    found: Any = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert found["text"]["passages"] == 3
    assert found["task"] is None
    shown = CliRunner().invoke(app, command).stdout
    assert "On 3 passages of other text" in shown


@pytest.mark.parametrize("option", [{"tasks": heldout()}, {"max_task_chars": 400}])
def test_tasks_need_an_environment_that_is_known(
    policy: Policy, tmp_path: Path, option: dict[str, Any]
) -> None:
    policy.save_adapter(tmp_path / "adapter")
    with pytest.raises(UsageError, match=r"adapter is in no training run.*; name the environment \(--env\)"):
        envkit.forgetting(tmp_path / "adapter", **option, display="quiet")


@pytest.mark.slow
def test_a_run_says_what_it_was_trained_on(tmp_path: Path) -> None:
    settings = {
        "model": str(tiny.make(tmp_path / "model").path),
        "lora_r": 2,
        "max_turns": 1,
        "max_completion_length": 4,
        "sft_examples": 4,
        "sft_batch_size": 2,
        "max_steps": 1,
        "groups_per_step": 2,
        "num_generations": 2,
    }
    tasks = heldout()
    run = envkit.train(
        config=settings,
        tasks=starter_tasks()[3:],
        heldout_tasks=tasks,
        evaluate=False,
        root=tmp_path,
        display="quiet",
    ).run
    found = envkit.forgetting(run, tasks=tasks, limit=2, display="quiet")
    assert found.text.passages == 2
    assert found.task is not None
    assert (found.task.environment, found.task.episodes) == ("code-editor", 2)
    assert found.task.kl.estimate > 0
    assert "2 tasks of code-editor: KL divergence" in found.sentences[-1]
    manifest = run / "manifest.json"
    several = json.loads(manifest.read_text()) | {"environments": ["code-editor", "sql-desk"]}
    manifest.write_text(json.dumps(several))
    with pytest.raises(UsageError, match=r"trained on code-editor, sql-desk; name the environment"):
        envkit.forgetting(run, limit=2, display="quiet")


def test_one_file_alone_shows_nothing() -> None:
    known, unknown = Interval(2.0, 1.9, 2.1, 9), Interval(0.1, -math.inf, math.inf, 1)
    found = Forgetting(TextLoss(2, 90, known, known, unknown, (0.1, 0.1), ("file", "file")))
    assert found.sentences[-1].endswith("So few passages have no interval: nothing is shown.")
