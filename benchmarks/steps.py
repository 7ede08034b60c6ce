"""Steps per second without a model, on one core: whole episodes, reset and grading included.

    code-editor   the oracle's edit, looks at the file, and the submission, on the zygote
    sql-desk      queries of the shown database, and the answer, on SQLite

Each way names how many turns an episode has. No grade is found made: every visit has a seed of its own.
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

from envkit.display import Silent
from envkit.env import Env
from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.sql_desk import SqlDeskEnv
from envkit.registry import sandbox_backend
from envkit.types import Task

ROUNDS: Final = 5
EPISODES: Final = 20


@dataclass(frozen=True, slots=True)
class Way:
    """An environment played by rote.

    Args:
        kind: the environment.
        turns: of an episode, the last of which submits.
        said: all of an episode's actions.
        bar: the least steps per second; None where it is only reported.
    """

    kind: type[Env]
    turns: int
    said: Callable[[Env, Task, int], Sequence[str]]
    bar: float | None = None


def editing(env: Env, task: Task, turns: int) -> Sequence[str]:
    """Look, edit, submit; looks fill what is left."""
    looks = itertools.islice(itertools.cycle(["view", "outline"]), max(turns - 2, 0))
    first, *_ = env.oracle(task)
    edit = first.rsplit("\nsubmit", 1)[0] if turns > 1 else first
    return [*looks, edit, "submit"][-turns:] if turns > 1 else [first]


def querying(env: Env, task: Task, turns: int) -> Sequence[str]:
    """Query, then answer."""
    query = f"query('SELECT * FROM {task.hidden['domain']}')"
    return [*[query] * (turns - 1), *env.oracle(task)]


WAYS: Final = {
    f"{way.kind.id} {way.turns}": way
    for way in (
        Way(CodeEditorEnv, 1, editing),
        Way(CodeEditorEnv, 3, editing, 100),
        Way(CodeEditorEnv, 10, editing, 100),
        Way(SqlDeskEnv, 1, querying),
        Way(SqlDeskEnv, 3, querying),
        Way(SqlDeskEnv, 10, querying, 500),
        Way(SqlDeskEnv, 50, querying, 500),
    )
}


def steps_per_s(env: Env, way: Way, tasks: Sequence[Task], seeds: Iterator[int]) -> float:
    """Of a few episodes, one after the other, all of which must be solved."""
    steps, started = 0, time.perf_counter()
    for task in tasks:
        env.reset(seed=next(seeds), options={"task": task.id})
        for action in way.said(env, task, way.turns):
            *_, info = env.step(action)
            steps += 1
        if not info["solved"]:
            raise SystemExit(f"{env.id}, {task.id}: the oracle's episode is not solved: {info}")
    return steps / (time.perf_counter() - started)


def main() -> None:
    """Measure, and write ``runs/bench/steps.json``."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # sandboxes inherit it
    backend, seeds = sandbox_backend("zygote"), itertools.count()
    samples: dict[str, list[float]] = {name: [] for name in WAYS}
    sets = {
        kind: kind.make_tasks("starter", sandbox=backend, display=Silent())
        for kind in {way.kind for way in WAYS.values()}
    }
    environments = {
        name: way.kind(tasks=sets[way.kind], sandbox=backend, max_turns=way.turns)
        for name, way in WAYS.items()
    }
    for number in range(ROUNDS + 1):  # the first fills caches and starts what stays
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
