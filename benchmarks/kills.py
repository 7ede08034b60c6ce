"""Kill ``envkit train`` at random moments and resume it: it must end with the bits of an undisturbed run.

    python benchmarks/kills.py [KILLS]

Trains the default model: a warm start, then a few RL steps, once undisturbed. Then runs with the same
settings are killed with SIGKILL and resumed until they end, until ``KILLS`` (20) kills have hit. Weights,
optimizer, curriculum, every episode's tokens and log-probabilities and every metric but wall times are
compared. Writes ``runs/bench/kills.json``; exits 1 if a run differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from envkit.runtime.store import read_lines

ROOT = Path(__file__).parents[1]
STEPS = 6
CONFIG = f"""\
max_turns = 1
sft_examples = 24
groups_per_step = 4
num_generations = 4
max_completion_length = 96
max_steps = {STEPS}
save_steps = 2
stop_strings = ["\\n```\\n"]
"""
#: Longest life of a killed process, as a share of the time that an undisturbed run takes.
LONGEST = 0.4
_CHECKPOINT = ("adapter_model.safetensors", "optimizer.pt", "state.json")


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a training process in a group of its own."""
    command = [str(Path(sys.executable).with_name("envkit")), "train", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(arguments: list[str]) -> float:
    """Train to the end; return the seconds that it took."""
    started = time.monotonic()
    process = start(arguments)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"envkit train {' '.join(arguments)}:\n{errors.decode()}")
    return time.monotonic() - started


def kill_after(arguments: list[str], seconds: float) -> bool:
    """Kill a training process after some time. Returns False if it ended before."""
    process = start(arguments)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode:
        raise SystemExit(f"envkit train {' '.join(arguments)}:\n{errors.decode()}")
    return False


def without_times(value: Any) -> Any:
    """Return a record of a journal without its wall times."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k != "seconds" and not k.endswith("_s")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def digests(run: Path) -> dict[str, str]:
    """Return what of a finished run must be the same, by name."""
    folder = run / "checkpoints" / f"step-{STEPS:06}"
    found = {name: (folder / name).read_bytes() for name in _CHECKPOINT}
    found["warm start"] = (run / "sft" / "adapter_model.safetensors").read_bytes()
    for name in ("metrics", "episodes"):
        # A run that went on from a checkpoint has written some records twice.
        records = {json.dumps(without_times(r), sort_keys=True) for r in read_lines(run / f"{name}.jsonl")}
        found[name] = "\n".join(sorted(records)).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def only_run(root: Path) -> Path | None:
    """Return the run folder that can be resumed, if the process lived long enough to make one."""
    runs = [manifest.parent for manifest in root.glob("*/manifest.json")]
    return runs[0] if runs else None


def main() -> None:
    kills = int(sys.argv[1]) if sys.argv[1:] else 20
    rng, hits, differing = random.Random(kills), list[tuple[int, float]](), list[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kills.toml").write_text(CONFIG)
        new = ["--config", str(folder / "kills.toml"), "--max-task-chars", "400", "--no-evaluation", "--root"]
        straight_s = finish([*new, str(folder / "straight")])
        straight = only_run(folder / "straight")
        assert straight is not None
        expected = digests(straight)
        print(f"undisturbed: {straight_s:.0f} s", flush=True)
        runs = 0
        while len(hits) < kills:
            root = folder / f"killed-{runs}"
            run, has_ended = None, False
            while len(hits) < kills and not has_ended:
                arguments = ["--resume", str(run)] if run else [*new, str(root)]
                seconds = rng.uniform(0, LONGEST) * straight_s
                has_ended = not kill_after(arguments, seconds)
                if not has_ended:
                    hits.append((runs, seconds))
                    print(f"run {runs}: kill {len(hits)} after {seconds:.1f} s", flush=True)
                run = only_run(root)
            if not has_ended:
                finish(["--resume", str(run)] if run else [*new, str(root)])
                run = only_run(root)
            assert run is not None
            found = digests(run)
            wrong = [part for part in expected if found[part] != expected[part]]
            print(f"run {runs}: {'differs in ' + ', '.join(wrong) if wrong else 'the same bits'}", flush=True)
            differing += [f"run {runs}: {part}" for part in wrong]
            runs += 1
    output = ROOT / "runs" / "bench" / "kills.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"straight_s": straight_s, "runs": runs, "kills": hits, "differing": differing}
    output.write_text(json.dumps(facts, indent=1) + "\n")
    raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()
