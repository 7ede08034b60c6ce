"""Measure steps per second without a model on one core, in whole episodes with reset and grading.

    code-editor   the oracle's edit, looks at the file, and the submission, on the zygote
    sql-desk      queries of the shown database, and the answer, on SQLite

Ways are named after the turns of an episode. Every visit has a new seed, so that no grade is cached.
Writes ``runs/bench/steps.json``. Exits 1 if a bar is missed.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from envkit.env import Env
from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.sql_desk import SqlDeskEnv
from envkit.sandbox.choice import sandbox_backend
from envkit.types import Task

ROUNDS: Final = 5
EPISODES: Final = 20


@dataclass(frozen=True, slots=True)
class Way:
    """An environment played with fixed actions.

    Args:
        kind: the environment.
        turns: turns of an episode; the last one submits.
        actions: returns all actions of an episode.
        bar: the least acceptable steps per second; None if they are only reported.
    """

    kind: type[Env]
    turns: int
    actions: Callable[[Env, Task, int], Sequence[str]]
    bar: float | None = None


def edit_actions(env: Env, task: Task, turns: int) -> Sequence[str]:
    """View, edit and submit; views fill the remaining turns."""
    looks = itertools.islice(itertools.cycle(["view", "outline"]), max(turns - 2, 0))
    first, *_ = env.oracle(task)
    edit = first.rsplit("\nsubmit", 1)[0] if turns > 1 else first
    return [*looks, edit, "submit"][-turns:] if turns > 1 else [first]


def query_actions(env: Env, task: Task, turns: int) -> Sequence[str]:
    """Query in all turns but the last, then answer."""
    query = f"query('SELECT * FROM {task.hidden['domain']}')"
    return [*[query] * (turns - 1), *env.oracle(task)]


WAYS: Final = {
    f"{way.kind.id} {way.turns}": way
    for way in (
        Way(CodeEditorEnv, 1, edit_actions),
        Way(CodeEditorEnv, 3, edit_actions, 100),
        Way(CodeEditorEnv, 10, edit_actions, 100),
        Way(SqlDeskEnv, 1, query_actions),
        Way(SqlDeskEnv, 3, query_actions),
        Way(SqlDeskEnv, 10, query_actions, 500),
        Way(SqlDeskEnv, 50, query_actions, 500),
    )
}


def steps_per_s(env: Env, way: Way, tasks: Sequence[Task], seeds: Iterator[int]) -> float:
    """Return the steps per second of one episode per task; all must be solved."""
    steps, started = 0, time.perf_counter()
    for task in tasks:
        env.reset(seed=next(seeds), options={"task": task.id})
        for action in way.actions(env, task, way.turns):
            *_, info = env.step(action)
            steps += 1
        if not info["solved"]:
            raise SystemExit(f"{env.id}, {task.id}: the oracle's episode is not solved: {info}")
    return steps / (time.perf_counter() - started)


def main() -> None:
    """Measure and write ``runs/bench/steps.json``."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # sandboxes inherit the affinity
    backend, seeds = sandbox_backend("zygote"), itertools.count()
    samples: dict[str, list[float]] = {name: [] for name in WAYS}
    sets = {kind: kind.tasks_of("starter", backend) for kind in {way.kind for way in WAYS.values()}}
    environments = {
        name: way.kind(tasks=sets[way.kind], sandbox=backend, max_turns=way.turns)
        for name, way in WAYS.items()
    }
    for number in range(ROUNDS + 1):  # the first round fills caches and starts processes
        for name, way in WAYS.items():
            some = itertools.islice(itertools.cycle(sets[way.kind]), number, number + EPISODES)
            found = steps_per_s(environments[name], way, list(some), seeds)
            if number:
                samples[name].append(found)
    for env in environments.values():
        env.close()
    medians = {name: round(median(found), 1) for name, found in samples.items()}
    for name, found in medians.items():
        print(f"{name:20} turns {found:8.1f} steps/s   bar {WAYS[name].bar or '-'}")
    out = Path("runs/bench/steps.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"steps_per_s": medians, "samples": samples}, indent=1) + "\n")
    missed = [name for name, found in medians.items() if found < (WAYS[name].bar or 0)]
    if missed:
        raise SystemExit(f"below the bar: {', '.join(missed)}")


if __name__ == "__main__":
    main()
