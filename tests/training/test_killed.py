"""A run that is killed at any moment, and gone on with, ends with the bits of one that was left alone."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

_STEPS = 90


def train(folder: Path, model: Path) -> None:
    """What the killed process does: begin, or go on, and say so."""
    import tiny
    import torch

    from envkit.models import ModelRef, weights_digest
    from envkit.rollout import Rollouts
    from envkit.store import Journal
    from envkit.training.checkpoint import CheckpointStore
    from envkit.training.grpo import GRPOTrainer
    from envkit.training.rollouts import RolloutCollector

    torch.set_num_threads(1)
    config = dataclasses.replace(tiny.TRAINING, max_steps=_STEPS, save_steps=3)
    tasks = tiny.letter_tasks("abcdefg")
    policy = tiny.policy(ModelRef("tiny", model, weights_digest(model)), seed=config.seed)
    backend = tiny.MemoryBackend()
    with (
        Rollouts(lambda: tiny.LetterEnv(tasks=tasks, sandbox=backend, max_turns=2)) as rollouts,
        Journal(folder / "metrics.jsonl") as metrics,
        Journal(folder / "episodes.jsonl") as episodes,
    ):
        store = CheckpointStore(folder / "checkpoints")
        trainer = GRPOTrainer(RolloutCollector(policy, tasks, rollouts, config, episodes), metrics, store)
        trainer.resume()
        print(trainer.step, flush=True)
        trainer.train(lambda _: True)


def begin(folder: Path, model: Path) -> tuple[subprocess.Popen[str], int]:
    """Start, and return once training has, with the step that it goes on from."""
    folder.mkdir(exist_ok=True)
    child = subprocess.Popen(
        [sys.executable, __file__, folder, model], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    if not (said := child.stdout.readline()):
        raise AssertionError(child.communicate()[1])
    return child, int(said)


def finish(folder: Path, model: Path) -> dict[str, bytes]:
    """Go on to the end; returns the last checkpoint's files, and all that was done, wall times left out."""
    from envkit.store import read_lines
    from envkit.training.checkpoint import CheckpointStore

    child, _ = begin(folder, model)
    _, errors = child.communicate()
    assert child.returncode == 0, errors
    store = CheckpointStore(folder / "checkpoints")
    assert store.steps()[-1] == _STEPS
    names = ("adapter_model.safetensors", "optimizer.pt", "state.json")
    found = {name: (store.path(_STEPS) / name).read_bytes() for name in names}
    did = {
        record["step"]: {name: value for name, value in record.items() if not name.endswith("_s")}
        for record in read_lines(folder / "metrics.jsonl")
    }
    return found | {"metrics": repr(sorted(did.items())).encode()}


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.nightly)])
def test_kill_9_changes_no_bit(tmp_path: Path, kills: int) -> None:
    import tiny

    from envkit.training.checkpoint import CheckpointStore

    model, killed = tmp_path / "model", tmp_path / "killed"
    tiny.make(model)
    expected = finish(tmp_path / "straight", model)
    store, rng, starts = CheckpointStore(killed / "checkpoints"), random.Random(kills), list[int]()
    for number in range(kills):
        child, start = begin(killed, model)
        starts.append(start)
        # Every other time around the moment when a checkpoint is written.
        while number % 2 == 0 and store.steps()[-1:] in ([], [start]) and child.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02 if number % 2 == 0 else 0.5))
        assert child.poll() is None, f"over after {number} kills: nothing was left to kill"
        child.kill()
        child.communicate()
    assert starts == sorted(starts)
    assert starts[-1] > 0, "it always began anew"
    assert finish(killed, model) == expected


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))  # for tiny.py
    train(Path(sys.argv[1]), Path(sys.argv[2]))
