"""Time ``import envkit``, ``import gymnasium`` and ``envkit --help``.

Runs alternate, so that a busy moment affects all of them; medians are reported. Writes
``runs/bench/imports.json``. Exits 1 if ``import envkit`` loads torch.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
RUNS = 10
#: Most seconds that ``import envkit`` may add to gymnasium's import, and that ``envkit --help`` may take.
ADDED_BAR_S = 0.15
HELP_BAR_S = 0.8


def import_s(module: str) -> float:
    """Return the seconds of ``python -X importtime`` for a module with all its imports."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    row = re.search(rf"\| +(\d+) \| {module}$", report, re.MULTILINE)
    if row is None:
        raise SystemExit(f"-X importtime has no row for {module}:\n{report[-500:]}")
    return int(row[1]) / 1e6


def help_s() -> float:
    """Return the wall seconds of ``envkit --help``, including interpreter start."""
    started = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("envkit"), "--help"], capture_output=True, check=True)
    return time.perf_counter() - started


def loads_torch() -> bool:
    code = "import sys, envkit; sys.exit('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode != 0


def main() -> None:
    measures = {
        "import gymnasium": lambda: import_s("gymnasium"),
        "import envkit": lambda: import_s("envkit"),
        "envkit --help": help_s,
    }
    for measure in measures.values():
        measure()  # fills the bytecode and disk caches
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(RUNS):
        for name, measure in measures.items():
            samples[name].append(measure())
    medians = {name: median(times) for name, times in samples.items()}
    added_s = medians["import envkit"] - medians["import gymnasium"]
    torch_loaded = loads_torch()

    for name, seconds in medians.items():
        print(f"{name:<34}{seconds:7.3f} s")
    print(f"{'import envkit, beyond gymnasium':<34}{added_s:7.3f} s   bar {ADDED_BAR_S} s")
    print(f"{'envkit --help':<34}{medians['envkit --help']:7.3f} s   bar {HELP_BAR_S} s")
    print(f"{'torch loaded by import envkit':<34}{'yes' if torch_loaded else 'no':>7}")

    target = ROOT / "runs" / "bench" / "imports.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = {"runs": RUNS, "python": platform.python_version(), "machine": platform.machine()}
    result = {**facts, "median_s": medians, "samples_s": samples, "added_s": added_s, "torch": torch_loaded}
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {target.relative_to(ROOT)}")
    if torch_loaded:
        raise SystemExit("import envkit loads torch")


if __name__ == "__main__":
    main()
