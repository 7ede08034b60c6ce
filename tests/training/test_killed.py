"""A run killed at random moments and resumed ends with the same bits as an uninterrupted one."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # whole runs, killed and resumed

_STEPS = 90


def train(folder: Path, model: Path) -> None:
    """Run in the killed process: start or resume training, and print the starting step."""
    import tiny
    import torch

    from envkit.models import ModelRef, weights_digest
    from envkit.rollout import Rollouts
    from envkit.runtime.store import Journal
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
    """Start the process; return it with its starting step once training runs."""
    folder.mkdir(exist_ok=True)
    child = subprocess.Popen(
        [sys.executable, __file__, folder, model], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    if not (line := child.stdout.readline()):
        raise AssertionError(child.communicate()[1])
    return child, int(line)


def finish(folder: Path, model: Path) -> dict[str, bytes]:
    """Train to the end; return the last checkpoint's files and the metrics without wall times."""
    from envkit.runtime.store import read_lines
    from envkit.training.checkpoint import CheckpointStore

    child, _ = begin(folder, model)
    _, errors = child.communicate()
    assert child.returncode == 0, errors
    store = CheckpointStore(folder / "checkpoints")
    assert store.steps()[-1] == _STEPS
    names = ("adapter_model.safetensors", "optimizer.pt", "state.json")
    found = {name: (store.path(_STEPS) / name).read_bytes() for name in names}
    steps = {
        record["step"]: {name: value for name, value in record.items() if not name.endswith("_s")}
        for record in read_lines(folder / "metrics.jsonl")
    }
    return found | {"metrics": repr(sorted(steps.items())).encode()}


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.nightly)])
def test_a_run_resumed_after_sigkill_ends_with_the_same_bits(tmp_path: Path, kills: int) -> None:
    import tiny

    from envkit.training.checkpoint import CheckpointStore

    model, killed = tmp_path / "model", tmp_path / "killed"
    tiny.make(model)
    expected = finish(tmp_path / "straight", model)
    store, rng, starts = CheckpointStore(killed / "checkpoints"), random.Random(kills), list[int]()
    for number in range(kills):
        child, start = begin(killed, model)
        starts.append(start)
        # Every other kill happens about when a checkpoint is written.
        while number % 2 == 0 and store.steps()[-1:] in ([], [start]) and child.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02 if number % 2 == 0 else 0.5))
        assert child.poll() is None, f"over after {number} kills: nothing was left to kill"
        child.kill()
        child.communicate()
    assert starts == sorted(starts)
    assert starts[-1] > 0, "no run resumed from a checkpoint"
    assert finish(killed, model) == expected


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1] / "helpers"))  # for tiny.py
    train(Path(sys.argv[1]), Path(sys.argv[2]))
