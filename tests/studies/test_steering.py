"""`envkit study steering`, from episodes of the base to an adapter that shifts one layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import sample_runs
import tiny
import torch
from typer.testing import CliRunner

import envkit
from envkit.cli.main import app
from envkit.engine.adapters.updates import read_adapter
from envkit.errors import UsageError
from envkit.models import ModelRef
from envkit.models.adapter_folder import recorded_control
from envkit.runs.tools.support import KIND
from envkit.runtime.store import RunFolder, trajectory_to_json
from envkit.training.config import TrainConfig, to_mapping
from envkit.types import Outcome, Tokens

#: PEFT uses what transformers warns of, and warns of biases that could not be merged.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

#: Answers that solve, and others.
RIGHT, WRONG = (100, 101, 102), (900, 901)
PROMPTS = {name: tiny.prompt(length, length) for name, length in (("a", 9), ("b", 4), ("never", 5))}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return tiny.make(tmp_path_factory.mktemp("steered") / "model", num_hidden_layers=3)


def make_run(root: Path, model: ModelRef, kind: str = KIND, **settings: object) -> Path:
    """A run in which tasks a and b were solved sometimes, and the third never."""
    config = {**to_mapping(TrainConfig(model=str(model.path), dtype="float32")), **settings}
    manifest = {"kind": kind, "train": config, "model_digest": model.digest}
    run = RunFolder.create(root, kind, manifest)
    outcomes = {"a": (True, True, False), "b": (True, False, False), "never": (False, False)}
    with run.journal("eval-policy") as journal:
        for task, solved in outcomes.items():
            for row, is_right in enumerate(solved):
                ids = (RIGHT if is_right else WRONG)[: row + 1]
                tokens = Tokens(PROMPTS[task], ids, (-0.5,) * len(ids))
                outcome = Outcome.SOLVED if is_right else Outcome.FAILED
                turns = [sample_runs.turn(tokens=tokens)]
                journal.append(trajectory_to_json(sample_runs.played(task, outcome, turns, row=row)))
    return run.path


def outputs_of(model: ModelRef, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    """Outputs of the second layer for an answer, in plain transformers."""
    with torch.no_grad():
        found = tiny.plain(model)(torch.tensor([[*prompt, *answer]]), output_hidden_states=True)
    states: torch.Tensor = found.hidden_states[2][0, len(prompt) :]
    return states


def outputs(model: ModelRef, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    return outputs_of(model, prompt, answer).mean(dim=0)


def test_the_vector_is_the_mean_difference_within_tasks(model: ModelRef, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    words = ["study", "steering", str(run), "-o", str(tmp_path / "made"), "--strength", "2", "--json"]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)["steering"]
    assert (found["tasks"], found["episodes"], found["layer"], found["layers"]) == (2, 6, 2, 3)
    a, b = PROMPTS["a"], PROMPTS["b"]
    right_a = (outputs(model, a, RIGHT[:1]) + outputs(model, a, RIGHT[:2])) / 2
    wrong_b = (outputs(model, b, WRONG[:2]) + outputs(model, b, WRONG)) / 2
    difference = (right_a - outputs(model, a, WRONG) + outputs(model, b, RIGHT[:1]) - wrong_b) / 2
    assert recorded_control(tmp_path / "made") == "steering"
    updates = read_adapter(tmp_path / "made")
    shifts = [update.shift for _, update in sorted(updates.items())]
    assert [shift is not None and bool(shift.any()) for shift in shifts] == [False, True, False]
    torch.testing.assert_close(shifts[1], 2 * difference, rtol=1e-3, atol=1e-4)
    lengths = [
        outputs_of(model, PROMPTS[task], answer).square().sum(dim=-1).sqrt().mean()
        for task, answers in (("a", (RIGHT[:1], RIGHT[:2], WRONG)), ("b", (RIGHT[:1], WRONG, WRONG)))
        for answer in answers
    ]
    expected = 2 * difference.square().sum().sqrt() / torch.stack(lengths).mean()
    assert found["share"] == pytest.approx(float(expected), rel=1e-3)
    sampled = json.loads((tmp_path / "made" / "manifest.json").read_text())["sampled_tokens"]
    assert sampled == 1 + 2 + 2 + 1 + 2 + 2 + 3  # of the task that was never solved, too


def test_steering_makes_what_solved_more_likely(model: ModelRef, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    envkit.steer(run, tmp_path / "toward", strength=3, display="quiet")
    envkit.steer(run, tmp_path / "away", strength=-3, display="quiet")
    chances: dict[str, float] = {}
    for name in ("toward", "away"):
        with envkit.load_adapter(tmp_path / name, model=model.path, dtype="float32") as adapter:
            with torch.no_grad():
                logits = adapter.model(torch.tensor([[*PROMPTS["a"]]])).logits[0, -1]
            chances[name] = float((logits[RIGHT[0]] - logits[WRONG[0]]).item())
    assert chances["toward"] > chances["away"]


def test_bad_input_is_refused_before_a_model_is_loaded(model: ModelRef, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="taken exists"):
        envkit.steer(run, tmp_path / "taken", display="quiet")
    with pytest.raises(UsageError, match="strength is 0"):
        envkit.steer(run, tmp_path / "made", strength=0, display="quiet")
    with pytest.raises(UsageError, match="layer is 4, and model has layers 1 to 3"):
        envkit.steer(run, tmp_path / "made", layer=4, display="quiet")
    with pytest.raises(UsageError, match="expected one of `envkit study support`"):
        envkit.steer(make_run(tmp_path, model, "bench"), tmp_path / "made", display="quiet")
    other = replace(model, digest="other weights")
    with pytest.raises(UsageError, match="was played by other weights than model has now"):
        envkit.steer(make_run(tmp_path, other), tmp_path / "made", display="quiet")
    played = make_run(tmp_path, model, warm_start="/an/adapter", sft_examples=0)
    with pytest.raises(UsageError, match="was played by an adapter"):
        envkit.steer(played, tmp_path / "made", display="quiet")
    (run / "eval-policy.jsonl").unlink()
    with pytest.raises(UsageError, match="none of the 0 tasks"):
        envkit.steer(run, tmp_path / "made", display="quiet")
    assert not (tmp_path / "made").exists()
