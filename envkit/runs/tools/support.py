"""Find out, before training, whether RL has something to learn from: play train tasks in groups."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from envkit.agents.local import LocalAgent
from envkit.engine.protocol import Sampling
from envkit.env import Env
from envkit.errors import Stopped
from envkit.measure.number_text import percent, share
from envkit.measure.stats import LEVEL, Interval, rate_interval
from envkit.models import resolve
from envkit.rollout import Rollouts
from envkit.runs.benchmark.eval_runner import EvalRunner
from envkit.runs.folder.trial_run import begin
from envkit.runtime.display import Display
from envkit.runtime.stop import ShouldStop
from envkit.runtime.store import RunFolder, write_atomic
from envkit.sandbox import SandboxBackend
from envkit.training.checkpoint import load_adapter
from envkit.training.config import TrainConfig
from envkit.training.policy import Policy
from envkit.types import Outcome, Task, Trajectory

#: ``kind`` in the manifest of such a run.
KIND: Final = "support"
#: Name of the row that plays.
ROW: Final = "policy"
#: Groups after which the question may be decided. Each look has its share of the error.
LOOKS: Final = (8, 16, 32, 64, 128)
#: Share of solved episodes above which tasks are too easy rather than too hard.
_EASY: Final = 0.5


@dataclass(frozen=True, slots=True)
class Support:
    """Results of groups of episodes, one task a group: do they differ enough for RL to start?

    Intervals resample source functions. They are wide enough to hold at every look.

    Args:
        groups: number of groups, one for each task.
        group_size: episodes in a group.
        solved: share of episodes that solved their task.
        ever: share of groups with at least one such episode.
        mixed: share of groups whose episodes earned different rewards. Only these teach.
        needed: the share that gives a training step one mixed group on average; half at most.
    """

    groups: int
    group_size: int
    solved: Interval
    ever: Interval
    mixed: Interval
    needed: float

    @property
    def can_start(self) -> bool | None:
        """True if RL has something to learn from, False if it has too little, ``None`` if it is open."""
        if self.mixed.low >= self.needed:
            return True
        return False if self.mixed.high < self.needed else None

    def as_data(self) -> dict[str, Any]:
        """All numbers as JSON data; bounds that are not known are null."""
        rates = {"solved": self.solved, "ever": self.ever, "mixed": self.mixed}
        return {
            "groups": self.groups,
            "group_size": self.group_size,
            **{name: _without_infinity(asdict(rate)) for name, rate in rates.items()},
            "needed": self.needed,
            "can_start": self.can_start,
        }

    @property
    def sentences(self) -> tuple[str, ...]:
        """Say in sentences what was found, and what to do."""
        step = round(1 / self.needed)
        found = (
            f"Solved: {share(self.solved)} of {self.groups * self.group_size} episodes; {share(self.ever)} "
            f"of {self.groups} tasks at least once in {self.group_size} tries.",
            f"Groups with different rewards: {share(self.mixed)}; RL needs {percent(self.needed)} %, one of "
            f"{step} groups.",
        )
        if self.can_start:
            return (*found, "RL can start here.")
        if self.can_start is None:
            return (
                *found,
                f"{self.groups} tasks do not decide whether RL can start here: larger steps "
                "(groups_per_step) need a smaller share.",
            )
        if self.solved.estimate > _EASY:
            return (*found, "RL has too little to learn from here: these tasks are too easy.")
        return (
            *found,
            "RL has too little to learn from here. What helps: a warm start (sft_examples, or --warm-start), "
            "easier or shorter tasks (--max-task-chars), rewards for a part of the work, or, of a harness, "
            "shorter prompts.",
        )


def share_needed(groups_per_step: int) -> float:
    """Return the share of mixed groups that RL needs: one a step; of steps of one group, every second."""
    return 1 / max(groups_per_step, 2)


def support_of(groups: Sequence[Sequence[Trajectory]], sources: Sequence[str], needed: float) -> Support:
    """Summarise groups of episodes.

    Args:
        groups: the graded episodes of each task, at least one.
        sources: source of each task.
        needed: as in `Support`.
    """
    level = 1 - (1 - LEVEL) / len(LOOKS)

    def interval(rates: Sequence[float]) -> Interval:
        return rate_interval(rates, sources, level=level)

    return Support(
        len(groups),
        max(map(len, groups)),
        interval([sum(one.solved for one in group) / len(group) for group in groups]),
        interval([any(one.solved for one in group) for group in groups]),
        interval([len({one.reward for one in group}) > 1 for group in groups]),
        needed,
    )


def start(
    root: Path,
    config: TrainConfig,
    kind: type[Env],
    tasks: Sequence[Task],
    *,
    backend: SandboxBackend,
    display: Display,
    command: str,
) -> tuple[RunFolder, TrainConfig, list[Task]]:
    """Create the run folder of a study; returns it with the tasks and all settings that it is played with.

    Args:
        root: parent of the folder.
        config: settings of the training that is thought of. Its model, or the adapter in ``warm_start``,
            plays with its temperature, lengths and turns, in groups of its size.
        kind: the environment.
        tasks: train tasks; some are drawn from them.
        backend: isolates the episodes.
        display: shows what was chosen.
        command: the command line, for the manifest.

    Raises:
        ModelError: the model cannot be had, or ``warm_start`` is no adapter for it.
    """
    return begin(
        root,
        KIND,
        config,
        kind,
        tasks,
        LOOKS[-1],
        backend=backend,
        display=display,
        command=command,
        facts={},
    )


def play(
    run: RunFolder,
    config: TrainConfig,
    kind: type[Env],
    tasks: Sequence[Task],
    backend: SandboxBackend,
    display: Display,
    should_stop: ShouldStop,
) -> Support | None:
    """Play groups until it is decided whether RL can start; ``None`` if it was stopped before the first look.

    What was found is written to ``support.json`` after each look.

    Args:
        run, config, tasks: from `start`.
        kind: the environment.
        backend: isolates the episodes.
        display: live view.
        should_stop: polled while episodes are played.

    Raises:
        SandboxError, ContractError: the environment or its sandboxes broke; see `EvalRunner.play`.
    """
    found: Support | None = None
    size, turns = config.num_generations, config.turns
    sampling = Sampling(config.temperature, config.max_completion_length, stop_strings=config.stop_strings)
    with (
        contextlib.closing(Policy.of(resolve(config.model, display), config)) as policy,
        Rollouts(
            lambda: kind(tasks=tasks, sandbox=backend, max_turns=turns), should_stop=should_stop
        ) as rollouts,
    ):
        if config.warm_start:
            load_adapter(policy, Path(config.warm_start))
        policy.sync()
        agent = LocalAgent(
            ROW,
            policy.engine,
            policy.renderer,
            sampling,
            turns,
            max_context_length=config.max_context_length,
            should_stop=should_stop,
        )
        for count in LOOKS:
            some = tasks[:count]
            runner = EvalRunner(run, some, display, chunk=LOOKS[0] * size)
            try:
                runner.play(rollouts, agent, ROW, size)
            except Stopped:
                return found
            found = _look(runner, some, size, share_needed(config.groups_per_step))
            write_atomic(run.path / "support.json", json.dumps(found.as_data(), indent=1).encode())
            if found.can_start is not None or count >= len(tasks):
                break
            display.say(
                f"{len(some)} tasks: {percent(found.mixed.estimate)} % of groups have different rewards; not "
                "decided yet"
            )
    return found


def _without_infinity(data: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in data.items()}


def _look(runner: EvalRunner, tasks: Sequence[Task], size: int, needed: float) -> Support:
    graded: dict[str, list[Trajectory]] = {task.id: [] for task in tasks}
    for episode in runner.counted(ROW, size):
        if episode.outcome is not Outcome.VOID:
            graded[episode.key.task].append(episode)
    played = [task for task in tasks if graded[task.id]]
    return support_of([graded[task.id] for task in played], [task.source for task in played], needed)
