"""Supervised warm start (SFT): imitate the oracle's actions on train tasks."""

from __future__ import annotations

import itertools
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from envkit.env import Env, oracle_actions
from envkit.errors import SandboxError, StoreError
from envkit.models import ModelRef, resolve
from envkit.models.adapter_folder import require_fit, require_scale
from envkit.runs.folder.machine import settle
from envkit.runs.folder.turns import turns_of
from envkit.runtime.display import Display
from envkit.runtime.stop import ShouldStop, never, raise_if_stopped
from envkit.sandbox import SandboxBackend
from envkit.training import sft
from envkit.training.checkpoint import CheckpointStore, save_adapter
from envkit.training.config import TrainConfig
from envkit.training.demonstration import Demonstration
from envkit.training.learner.memory import training_memory_errors
from envkit.training.policy import Policy
from envkit.training.rollouts import require_trainable
from envkit.types import Task


def phase_tasks(tasks: Sequence[Task], config: TrainConfig) -> tuple[list[Task], list[Task]]:
    """Return an environment's tasks for the warm start, and those for RL.

    Args:
        tasks: see `split_for_warm_start`.
        config: says which of the two there are. A phase gets all tasks if the other one is left out.
    """
    if config.is_sft_alone:
        return list(tasks), []
    return split_for_warm_start(tasks) if config.is_warm else ([], list(tasks))


def split_for_warm_start(tasks: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    """Split tasks by source: one part for the warm start, the other for RL.

    On sources of the warm start, the policy could earn rewards by recall. RL would then reinforce memorized
    answers and improve little on held-out sources. So RL gets the sources that are new to the policy, two
    thirds of all.

    Args:
        tasks: in the miner's order, in which the first tasks are spread over sources.

    Returns:
        Tasks of the first third of the sources, and tasks of the rest. With fewer than three sources,
        both parts hold all tasks.
    """
    sources = list(dict.fromkeys(task.source for task in tasks))
    imitated = set(sources[: len(sources) // 3])
    if not imitated:
        return list(tasks), list(tasks)
    return [t for t in tasks if t.source in imitated], [t for t in tasks if t.source not in imitated]


def require_warm_start(config: TrainConfig, ref: ModelRef) -> None:
    """Refuse a ``warm_start`` that RL of this model cannot begin with.

    Raises:
        ModelError: it is no adapter for this base, rank and scale.
    """
    if config.warm_start:
        require_fit(Path(config.warm_start), ref)
        require_scale(Path(config.warm_start), config.control, *config.lora_shape)


def demonstrations(
    kind: type[Env],
    tasks: Sequence[Task],
    backend: SandboxBackend,
    max_turns: int,
    should_stop: ShouldStop = never,
) -> list[Demonstration]:
    """Play the oracle on every task; returns its actions with the observations that they answer.

    The seed of a reset depends only on the task id. An episode's last action is not played, because nothing
    follows it: grading takes time.

    Raises:
        Stopped: ``should_stop`` returned True; it is polled before every task.
        SandboxError: an episode failed twice.
        ContractError: the oracle has no action for a task.
    """
    env = kind(tasks=tasks, sandbox=backend, max_turns=max_turns)

    def play(task: Task, actions: Sequence[str]) -> Demonstration:
        observation, _ = env.reset(seed=zlib.crc32(task.id.encode()), options={"task": task.id})
        exchanges = [(observation, actions[0])]
        for action, following in itertools.pairwise(actions[:max_turns]):
            observation, _, terminated, _, _ = env.step(action)
            if terminated:
                break
            exchanges.append((observation, following))
        return Demonstration(kind.system, tuple(exchanges))

    def demonstrate(task: Task) -> Demonstration:
        raise_if_stopped(should_stop)
        actions = oracle_actions(kind, task)
        try:
            return play(task, actions)
        except SandboxError:  # as in training: a sandbox may fail once
            return play(task, actions)

    try:
        return [demonstrate(task) for task in tasks]
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
    store: CheckpointStore | None = None,
) -> None:
    """Train the policy's adapter on the oracle's actions in ``config.sft_examples`` tasks.

    Args:
        policy: holds the adapter.
        tasks: train tasks by environment, in the miner's shuffled order. They are taken from the environments
            in turn, by their weights; one that runs out is skipped. If there are fewer than ``sft_examples``,
            they repeat.
        backend: sandbox backend, to reset the tasks.
        config: the training settings.
        display: shows progress.
        on_loss: called with ``(step, loss)`` after every step.
        should_stop: polled before every forward pass.
        store: of checkpoints, from the newest of which training goes on; ``None`` for none.

    Raises:
        Stopped: the user asked to stop; the adapter is half trained.
        TrainingError: a task is of another split or for evaluation only.
    """
    require_trainable(task for train_tasks in tasks.values() for task in train_tasks)
    chosen = _in_turn(tasks, config.weights)[: config.sft_examples]
    examples_of = {
        kind: iter(
            demonstrations(kind, [t for k, t in chosen if k is kind], backend, config.max_turns, should_stop)
        )
        for kind in dict.fromkeys(kind for kind, _ in chosen)
    }
    distinct = [next(examples_of[kind]) for kind, _ in chosen]
    examples = [distinct[index % len(distinct)] for index in range(config.sft_examples)]
    display.phase("SFT warm start", len(examples) // config.sft_batch_size)

    def on_step(step: int, loss: float) -> None:
        display.advance(step, f"loss {loss:.3f}")
        on_loss(step, loss)

    sft.train(policy, examples, config, on_step, should_stop, store)


def _in_turn(
    tasks: Mapping[type[Env], Sequence[Task]], weights: Mapping[str, float]
) -> list[tuple[type[Env], Task]]:
    """All tasks, such that any beginning of the list has each environment's share of them."""
    due = [
        ((number + 0.5) / weights.get(kind.id, 1.0), kind, task)
        for kind, train_tasks in tasks.items()
        for number, task in enumerate(train_tasks)
    ]
    return [(kind, task) for _, kind, task in sorted(due, key=lambda each: each[0])]


def warm_start(
    folder: Path,
    config: TrainConfig,
    kind: type[Env],
    tasks: Sequence[Task],
    backend: SandboxBackend,
    display: Display,
    should_stop: ShouldStop,
) -> list[float]:
    """Run only the warm start, on a new adapter; writes it to ``folder`` and returns the loss of each step.

    It imitates the tasks that a run's own warm start would, so that RL may begin with the adapter.

    Raises:
        Stopped: the user asked to stop; no adapter is written.
        ModelError: there is too little memory.
        StoreError: the folder is not writable; this is checked before training.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as error:
        raise StoreError(f"cannot write adapter {folder}: {error.strerror}") from error
    config = replace(config, max_turns=turns_of([kind], config.max_turns))
    config, _ = settle(config, None, display.say)
    config = replace(config, engine="torch")  # nothing is sampled
    imitated, _ = phase_tasks(tasks, config)
    if len(imitated) < len(tasks):
        display.say(
            f"imitating tasks of a third of the sources, {len(imitated)} of {len(tasks)}, so that RL has new "
            "ones; with max_steps = 0 in the settings, all of them"
        )
    policy = Policy.of(resolve(config.model, display), config)
    losses: list[float] = []

    def on_loss(step: int, loss: float) -> None:
        losses.append(loss)

    with training_memory_errors(config):
        run_warm_start(policy, {kind: imitated}, backend, config, display, on_loss, should_stop)
    save_adapter(policy, folder)
    return losses
