"""The supervised warm start: imitate the oracle on train tasks."""

from __future__ import annotations

import itertools
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from envkit.display import Display
from envkit.env import Env
from envkit.errors import ConfigError, StoreError
from envkit.models import resolve
from envkit.sandbox import SandboxBackend
from envkit.stop import ShouldStop, check, never
from envkit.studies.machine import resolve_dtype
from envkit.training import sft
from envkit.training.checkpoint import save_adapter
from envkit.training.config import TrainConfig
from envkit.training.demonstration import Demonstration
from envkit.training.policy import Policy
from envkit.training.rollouts import require_trainable
from envkit.types import Task


def split_for_warm_start(tasks: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    """The tasks for the warm start and those for RL, by function.

    What the warm start has imitated, RL could earn by recall: it then sharpens what is known by heart
    and moves held-out functions little. So RL practises on functions that are new to the policy, and on
    many: two thirds, whichever the miner's order makes them.

    Args:
        tasks: in the miner's order, in which the first tasks are spread over functions.

    Returns:
        Tasks of the first third of the functions, and of the others; all tasks twice if they are of fewer
        than three functions.
    """
    sources = list(dict.fromkeys(task.source for task in tasks))
    imitated = set(sources[: len(sources) // 3])
    if not imitated:
        return list(tasks), list(tasks)
    return [t for t in tasks if t.source in imitated], [t for t in tasks if t.source not in imitated]


def demonstrations(
    kind: type[Env],
    tasks: Sequence[Task],
    backend: SandboxBackend,
    max_turns: int,
    should_stop: ShouldStop = never,
) -> list[Demonstration]:
    """The oracle's first action on every task, with its observation. The reset seed depends on the task id.

    Raises:
        Stopped: ``should_stop`` has become True; it is polled before every task.
    """
    env = kind(tasks=tasks, sandbox=backend, max_turns=max_turns)

    def shown(task: Task) -> Demonstration:
        check(should_stop)
        observation, _ = env.reset(seed=zlib.crc32(task.id.encode()), options={"task": task.id})
        return Demonstration(kind.system, observation, kind.oracle(task)[0])

    try:
        return [shown(task) for task in tasks]
    finally:
        env.close()


def run_warm_start(
    policy: Policy,
    tasks: Mapping[type[Env], Sequence[Task]],
    backend: SandboxBackend,
    config: TrainConfig,
    display: Display,
    on_loss: Callable[[int, float], None],
    should_stop: ShouldStop,
) -> None:
    """Train the policy's adapter on the oracle's first action of ``config.sft_examples`` tasks.

    Args:
        tasks: by environment, train tasks in the miner's shuffled order. Environments take turns; one that
            has no more leaves its turns to the others. Gone through again when there are fewer.
        on_loss: ``(step, loss)`` after every step.
        should_stop: polled between micro-batches.

    Raises:
        Stopped: the user asked to stop; the adapter is half trained.
        TrainingError: a task is not for training.
    """
    require_trainable(task for own in tasks.values() for task in own)
    turns = itertools.zip_longest(*([(kind, task) for task in own] for kind, own in tasks.items()))
    chosen = [one for turn in turns for one in turn if one is not None][: config.sft_examples]
    made = {
        kind: iter(
            demonstrations(kind, [t for k, t in chosen if k is kind], backend, config.max_turns, should_stop)
        )
        for kind in dict.fromkeys(kind for kind, _ in chosen)
    }
    once = [next(made[kind]) for kind, _ in chosen]
    shown = [once[index % len(once)] for index in range(config.sft_examples)]
    display.phase("SFT warm start", len(shown) // config.sft_batch_size)

    def on_step(step: int, loss: float) -> None:
        display.advance(step, f"loss {loss:.3f}")
        on_loss(step, loss)

    sft.train(policy, shown, config, on_step, should_stop)


def warm_start(
    folder: Path,
    config: TrainConfig,
    kind: type[Env],
    tasks: Sequence[Task],
    backend: SandboxBackend,
    display: Display,
    should_stop: ShouldStop,
) -> list[float]:
    """Run only the warm start, on a fresh adapter; writes it to ``folder`` and returns the losses.

    Raises:
        Stopped: the user asked to stop; no adapter is written.
        ConfigError: there is not an example to imitate.
        StoreError: the folder cannot be written to, which is found out before the work.
    """
    if not config.sft_examples:
        raise ConfigError(f"sft_examples is 0; it must be at least {config.sft_batch_size} here")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as error:
        raise StoreError(f"cannot write adapter {folder}: {error.strerror}") from error
    config = replace(resolve_dtype(config), engine="torch")  # nothing is sampled
    policy = Policy.of(resolve(config.model, display.say), config)
    losses: list[float] = []
    run_warm_start(
        policy, {kind: tasks}, backend, config, display, lambda step, loss: losses.append(loss), should_stop
    )
    save_adapter(policy, folder)
    return losses
