"""Measure how many almost right answers the SQL desk accepts, and what a grade costs.

The wrong and right answers to the question of every domain are those of
`envkit.environments.sql_desk.variants`.

Usage: sql.py [VISITS], the number of seeds for each near miss. Writes ``runs/bench/sql.json``. Exits 1 if too
many are accepted.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from envkit.environments.sql_desk import SqlDeskEnv
from envkit.environments.sql_desk.tasks import BY_NAME, generate
from envkit.environments.sql_desk.variants import Judge, NearMiss, right_answers, wrong_answers
from envkit.sandbox.choice import sandbox_backend
from envkit.types import Task

#: Largest share of wrong answers that may be accepted.
MAX_ACCEPTED: Final = 0.001


def cases() -> Iterator[tuple[Task, NearMiss]]:
    """Wrong near misses of every question of every domain."""
    judges: dict[str, Judge] = {}
    for split in ("train", "heldout"):
        for task in generate(split, per_question=1):
            name = str(task.hidden["domain"])
            judge = judges[name] if name in judges else judges.setdefault(name, Judge(BY_NAME[name]))
            yield from ((task, miss) for miss in wrong_answers(task, judge))
    for judge in judges.values():
        judge.close()


def main(visits: int = 1) -> int:
    """Grade all near misses and right answers; return the exit status."""
    backend = sandbox_backend()
    found = [*cases()]
    tasks = [task for split in ("train", "heldout") for task in generate(split, per_question=1)]
    env = SqlDeskEnv(tasks=tasks, sandbox=backend, max_turns=1)
    accepted: list[dict[str, str]] = []
    tried, graded_s, cpu_s = Counter[str](), 0.0, 0.0

    def reward(task: Task, sql: str, seed: int) -> float:
        nonlocal graded_s, cpu_s
        env.reset(seed=seed, options={"task": task.id})
        began, cpu = time.monotonic(), time.process_time()
        earned = env.step(f"```sql\n{sql}\n```")[1]
        graded_s, cpu_s = graded_s + time.monotonic() - began, cpu_s + time.process_time() - cpu
        return earned

    for task, miss in found:
        for seed in range(visits):
            tried[miss.rule] += 1
            if reward(task, miss.sql, seed):
                accepted.append({"task": task.id, "rule": miss.rule, "sql": miss.sql})
    wrong = sum(tried.values())
    print(f"{'rule':<24}{'wrong':>8}{'accepted':>10}")
    for rule, count in sorted(tried.items()):
        print(f"{rule:<24}{count:>8}{sum(each['rule'] == rule for each in accepted):>10}")
    print(f"{'all':<24}{wrong:>8}{len(accepted):>10}  {100 * len(accepted) / wrong:.2f} %")
    for each in accepted[:10]:
        print(f"    {each['task']}: {each['sql']}")
    miss_ms = 1000 * graded_s / wrong
    graded_s = cpu_s = 0.0
    right = [(task, sql) for task in tasks for _, sql in right_answers(task)]
    rejected = [(task.id, sql) for task, sql in right if not reward(task, sql, 0)]
    print(f"right answers in other words: {len(right)}, rejected {len(rejected)} {rejected[:3]}")
    right_ms, host_ms = 1000 * graded_s / len(right), 1000 * cpu_s / len(right)
    print(
        f"a grade takes {miss_ms:.2f} ms if wrong, {right_ms:.2f} if right, {host_ms:.2f} of it on the host"
    )
    env.close()
    folder = Path("runs/bench")
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"wrong": wrong, "accepted": accepted, "right": len(right), "rejected": rejected}
    times = {"miss_ms": miss_ms, "right_ms": right_ms, "host_ms": host_ms}
    (folder / "sql.json").write_text(json.dumps({**numbers, **times}))
    return int(len(accepted) > MAX_ACCEPTED * wrong or bool(rejected))


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
