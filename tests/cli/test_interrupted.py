"""A run that is interrupted, killed or out of disk: nothing is lost, and `--resume` continues."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from envkit.env.taskfile import write_tasks
from envkit.environments.code_editor import starter_tasks
from envkit.runtime.store import RunFolder, read_lines

pytestmark = pytest.mark.slow  # whole runs, interrupted and resumed

ENVKIT = [sys.executable, "-m", "envkit.cli"]
TRAIN = ["train", "--tasks", "train.jsonl", "--heldout", "heldout.jsonl", "--config"]
STEPS = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, tasks and settings."""
    folder = tmp_path_factory.mktemp("home")
    model = tiny.make(folder / "model").path
    tasks = starter_tasks()
    write_tasks(folder / "train.jsonl", tasks[:4], seed=0)
    write_tasks(folder / "heldout.jsonl", [replace(task, split="heldout") for task in tasks[4:6]], seed=0)
    settings = {
        "model": str(model),
        "lora_r": 2,
        "sft_examples": 0,
        "max_steps": STEPS,
        "groups_per_step": 2,
        "num_generations": 2,
        "max_completion_length": 4,
        "save_steps": 2,
    }
    for name, changes in (("small", {}), ("slow", {"groups_per_step": 4, "num_generations": 128})):
        lines = [f"{key} = {json.dumps(value)}" for key, value in {**settings, **changes}.items()]
        (folder / f"{name}.toml").write_text("\n".join(lines) + "\n")
    return folder


@contextmanager
def begun(home: Path, root: str, config: str = "small.toml") -> Generator[tuple[subprocess.Popen[str], Path]]:
    """A training run whose first RL steps are on record, and its folder."""
    command = [*ENVKIT, *TRAIN, config, "--root", root]
    with subprocess.Popen(
        command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            for metrics in (home / root).glob("*/metrics.jsonl"):
                if any(record["phase"] == "rl" for record in read_lines(metrics)):
                    yield process, metrics.parent
                    return
            time.sleep(0.02)
        raise AssertionError(f"it ended before it was interrupted: {process.communicate()}")


def go_on(home: Path, folder: Path) -> None:
    # Its tasks are its own: the files that it began with may be gone.
    done = subprocess.run(
        [*ENVKIT, "train", "--resume", str(folder), "--json"],
        cwd=home / "model",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not json.loads(done.stdout)["stopped"]
    run = RunFolder.open(folder)
    assert {r["step"] for r in run.records("metrics") if r["phase"] == "rl"} == set(range(1, STEPS + 1))
    for row in ("base", "RL"):
        keys = [trajectory.key for trajectory in run.trajectories(f"eval-{row}")]
        assert len(keys) == len(set(keys)) == 2 * 4


def test_the_first_ctrl_c_saves_reports_and_says_how_to_continue(home: Path) -> None:
    with begun(home, "stopped") as (process, folder):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, err
    assert "stopping: finished episodes and the last checkpoint stay in" in err
    assert f"continue with: envkit train --resume {folder.relative_to(home)}" in out
    assert "stopped early" in (folder / "report.md").read_text()
    steps = [r["step"] for r in RunFolder.open(folder).records("metrics") if r["phase"] == "rl"]
    assert (folder / "checkpoints" / f"step-{steps[-1]:06d}" / "manifest.json").exists()
    assert steps[-1] < STEPS
    go_on(home, folder)


def test_the_second_ctrl_c_stops_at_once(home: Path) -> None:
    with begun(home, "stopped-now", "slow.toml") as (process, _):
        time.sleep(0.5)  # the step on record is over; well into the next
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)  # two at once would be one
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err


def test_a_killed_run_resumes(home: Path) -> None:
    with begun(home, "killed") as (process, folder):
        process.kill()
        process.communicate()
    go_on(home, folder)


def test_a_full_disk_is_named_and_written_files_stay(home: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    kept = tmp_path / "kept"
    # The disk has room when the run begins, else it is refused. What lies in a mount of the namespace goes
    # with it: copied out by the same shell.
    script = """
        "$@" & run=$!
        until cat "$SMALL"/*/eval-*.jsonl 2>/dev/null | grep -q . || ! kill -0 $run; do sleep 0.05; done
        cat /dev/zero 2>/dev/null >"$SMALL/filler"
        wait $run; rc=$?
        rm "$SMALL/filler"; cp -r "$SMALL" "$KEPT"; exit $rc
    """
    done = subprocess.run(
        [
            *(
                str(shutil.which("bwrap")),
                "--dev-bind",
                "/",
                "/",
                "--size",
                str(8 * 2**20),
                "--tmpfs",
                str(small),
            ),
            *("/bin/sh", "-c", script, "sh", *ENVKIT, *TRAIN, "small.toml", "--root", str(small)),
        ],
        cwd=home,
        env={**os.environ, "SMALL": str(small), "KEPT": str(kept)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert str(small) in done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    [run] = [RunFolder.open(path) for path in kept.iterdir()]
    assert sum(len(run.records(path.stem)) for path in run.path.glob("eval-*.jsonl")) > 0


def test_seeds_train_an_adapter_each_and_resume_together(home: Path) -> None:
    def envkit(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [*ENVKIT, *arguments, "--json"], cwd=home, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    found = envkit(*TRAIN, "small.toml", "--seed", "1", "--seed", "2", "--root", "several")
    run = Path(found["run"])
    assert [Path(each["report"]).parent for each in found["reports"]] == [run / "seed-1", run / "seed-2"]
    assert envkit("train", "--resume", str(run))["reports"] == found["reports"]
