"""Plays hostile actions on an environment: none may raise, or take more than 2 CPU seconds of the host."""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final

from envkit.audit.actions.hostile import hostile_actions
from envkit.env import Env
from envkit.errors import ContractError
from envkit.types import Task

#: Longest time that the host's own code may work on one action, in CPU seconds.
MAX_STEP_CPU_S: Final = 2.0
#: Most actions of exploits of a task that hostile actions are made from.
_MAX_SAMPLES: Final = 60


@dataclass(frozen=True, slots=True)
class FuzzResult:
    """The outcome of a run of hostile actions.

    Args:
        actions: number of actions played.
        faults: traceback of each exception that left `Env.step`, with the action's first characters.
        slowest_cpu_s: CPU seconds of this process for the slowest action, those of sandboxes not included.
        slowest: that action.
        seconds: wall time of the whole run.
    """

    actions: int
    faults: tuple[str, ...]
    slowest_cpu_s: float
    slowest: str
    seconds: float


@contextlib.contextmanager
def sparing_old_objects() -> Generator[None]:
    """Keep the garbage collector from visiting objects that exist now.

    Otherwise a collection that falls into a measured action may cost more than the action, because it visits
    all objects of the libraries that the process has loaded.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def fuzz(make_env: Callable[[], Env], tasks: Sequence[Task], count: int, seed: int = 0) -> FuzzResult:
    """Play hostile actions, task after task. An exception of a step does not end it.

    Args:
        make_env: makes the environment, best with many turns per episode.
        tasks: tasks to visit in turn; the environment knows them all.
        count: number of actions.
        seed: determines the actions.
    """
    faults: list[str] = []
    slowest_cpu_s, slowest = 0.0, ""
    started, played = time.monotonic(), 0
    with contextlib.closing(make_env()) as env, sparing_old_objects():
        for visit, task in enumerate(itertools.cycle(tasks)):
            draw = random.Random(f"{seed} {visit} {task.id}")
            actions = hostile_actions(_samples(env, task), env.tools, draw)
            env.reset(seed=visit, options={"task": task.id})
            for action in itertools.islice(actions, count - played):
                played += 1
                began = time.process_time()
                try:
                    _, _, terminated, truncated, _ = env.step(action)
                except Exception:
                    faults.append(f"{action[:200]!r}\n{traceback.format_exc(limit=-8)}")
                    terminated = truncated = True
                used_s = time.process_time() - began
                if used_s > slowest_cpu_s:
                    slowest_cpu_s, slowest = used_s, action
                if terminated or truncated:
                    break
            if played >= count:
                break
    return FuzzResult(played, tuple(faults), slowest_cpu_s, slowest, time.monotonic() - started)


def _samples(env: Env, task: Task) -> list[str]:
    """Valid actions for a task: those of its oracle if it has one, of its exploits, and the no-op."""
    oracle: Sequence[str] = ()
    with contextlib.suppress(ContractError):
        oracle = env.oracle(task)
    exploits = [action for exploit in env.exploits(task) for action in exploit.actions]
    return [*oracle, env.noop_action, *exploits[:_MAX_SAMPLES]]
