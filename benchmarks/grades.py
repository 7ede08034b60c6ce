"""Measure the CPU time of a grade by hidden calls, beside that of another version.

    make bench SECTION=grades
    python benchmarks/grades.py CHECKOUT

``CHECKOUT`` is another checkout of this project with a ``.venv`` of its own. Both grade in turns: 20 held-out
tasks, two groups of 8 candidates for each, of which 2 are right, with empty caches at first. The CPU time is
that of the whole machine, because the kernel spends much of it for sandboxes; so the machine must be idle.
Prints milliseconds per grade: medians of 5 rounds, and the median of the rounds' ratios.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from envkit.env.taskfile import read_tasks
from envkit.environments.code_editor.env import FRESH_CALLS, grader_for
from envkit.sandbox.choice import sandbox_backend

ROOT: Final = Path(__file__).parents[1]
TASKS, GROUPS, CANDIDATES, RIGHT, ROUNDS = 20, 2, 8, 2, 5


def busy_ms() -> float:
    """CPU time that this machine has spent so far, in milliseconds."""
    _, *ticks = Path("/proc/stat").read_text().splitlines()[0].split()
    user, nice, system, _idle, _waiting, *others = map(int, ticks)
    return 10.0 * (user + nice + system + sum(others[:3]))


def per_grade_ms(path: Path) -> float:
    """Grade candidates for each task of a file."""
    backend, tasks = sandbox_backend(), [*read_tasks(path)]
    grader_for(tasks[0]).grade(b"", backend, FRESH_CALLS, GROUPS)  # starts the sandbox's processes
    before = busy_ms()
    for task in tasks:
        grader = grader_for(task)
        for seed in range(GROUPS):
            for number in range(CANDIDATES):
                source = str(task.hidden["reference"] if number < RIGHT else task.files["solution.py"])
                grader.grade(f"{source}\n#{number}".encode(), backend, FRESH_CALLS, seed)
    return (busy_ms() - before) / (len(tasks) * GROUPS * CANDIDATES)


def measured(checkout: Path, tasks: Path) -> float:
    """Milliseconds per grade, in a process of another version."""
    argv = [checkout / ".venv/bin/python", Path(__file__), "--one", tasks]
    return float(subprocess.run(argv, cwd=checkout, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    # Not needed by the process that measures, in which another version of the project may lack them.
    from envkit.env.taskfile import write_tasks
    from envkit.environments.code_editor.tasksets import standard_tasks
    from envkit.runtime.display import Silent

    other = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
    tasks = random.Random(3).sample([*standard_tasks("heldout", sandbox_backend(), Silent())], TASKS)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tasks.jsonl"
        write_tasks(path, tasks, seed=0)
        rounds = [(measured(ROOT, path), measured(other, path) if other else None) for _ in range(ROUNDS)]
    print(f"this version: {statistics.median(here for here, _ in rounds):.1f} ms of CPU per grade")
    if other:
        pairs = [(here, there) for here, there in rounds if there is not None]
        ratios = [here / there for here, there in pairs]
        print(f"{other}: {statistics.median(there for _, there in pairs):.1f} ms")
        print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(per_grade_ms(Path(sys.argv[2])))
    else:
        main()
