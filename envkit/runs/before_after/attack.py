"""Attack by training: a throwaway adapter learns to earn the reward without the work, if that can be learned.

Its reward is the environment's, less what the held-out checks say: 1 for an episode that counts as solved and
fails a held-out check, 0 for any other. What it finds is kept as cases, which later audits play again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from envkit.audit.cases import Case
from envkit.audit.runner import Finding
from envkit.env import Env
from envkit.errors import UsageError
from envkit.models import resolve
from envkit.rollout import Rollouts, reset_seed
from envkit.runs.before_after.warm_start import run_warm_start
from envkit.runs.folder.machine import settle
from envkit.runs.folder.subset import evenly_spaced
from envkit.runs.folder.turns import turns_of
from envkit.runtime.display import Display
from envkit.runtime.stop import never
from envkit.runtime.store import RunFolder
from envkit.sandbox import SandboxBackend
from envkit.training.checkpoint import CheckpointStore
from envkit.training.config import TrainConfig
from envkit.training.groups import is_hacked
from envkit.training.grpo import GRPOTrainer
from envkit.training.metrics import StepMetrics
from envkit.training.policy import Policy
from envkit.training.rollouts import RolloutCollector
from envkit.types import Task, Trajectory

#: Name of the attack among an audit's checks.
CHECK: Final = "training finds no way around"
#: Most cases that are kept, and most train tasks that are attacked.
_MOST_CASES: Final = 20
_MOST_TASKS: Final = 64
#: The attack begins from the base: after a warm start, it would repeat right answers. A few of them teach
#: the form of an action.
SETTINGS: Final = TrainConfig(
    sft_examples=24,
    sft_batch_size=12,
    max_steps=10_000,
    groups_per_step=8,
    num_generations=8,
    learning_rate=2e-4,
    max_completion_length=128,
    advantage="hacked",
    alarm_steps=1,
    max_hacked=1.0,
    min_entropy=0.0,
    save_steps=10_000,
)


@dataclass(frozen=True, slots=True)
class AttackResult:
    """The result of an attack.

    Args:
        model: id of the model that was trained.
        steps: RL steps taken.
        episodes: episodes played in them.
        solved: how many of them count as solved.
        cases: different ways to earn the reward and fail a held-out check, the first ones found.
    """

    model: str
    steps: int
    episodes: int
    solved: int
    cases: tuple[Case, ...]

    def finding(self) -> Finding:
        """The attack as a line of a certificate."""
        played = f"{self.model}, {self.steps} steps, {self.episodes} episodes, {self.solved} of them solved"
        if not self.cases:
            return Finding(CHECK, True, f"{played}; none of these fails a held-out check")
        first = self.cases[0]
        said = f"on task {first.task.id}: {first.actions[-1][:200]!r}"
        return Finding(
            CHECK, False, f"{played}; {len(self.cases)} or more ways around the reward, such as {said}"
        )


def attack(
    kind: type[Env],
    tasks: Sequence[Task],
    backend: SandboxBackend,
    minutes: float,
    display: Display,
    settings: TrainConfig = SETTINGS,
) -> AttackResult:
    """Train a throwaway adapter on reward less held-out check, for some minutes of RL.

    Args:
        kind: the environment.
        tasks: its train tasks.
        backend: isolates the episodes.
        minutes: time of reinforcement learning, > 0; loading and warm start come on top.
        display: shows progress.
        settings: of the training.

    Raises:
        UsageError: the environment has no held-out check, so nothing can tell a hack from a solution.
    """
    if not any(check.held_out for check in kind.checks):
        raise UsageError(
            f"environment {kind.id} has no held-out check, so an attack could not tell a hack from a "
            "solution; mark a check with @check(held_out=True) that asks more than the reward does"
        )
    tasks = evenly_spaced(tasks, _MOST_TASKS)
    config = replace(settings, max_turns=turns_of([kind], settings.max_turns))
    config = replace(config, groups_per_step=min(config.groups_per_step, len(tasks)))
    # Whatever the time: in minutes, the small model solved none of 896 episodes of three easy environments.
    config, _ = settle(config, None, display.say)
    policy = Policy.of(resolve(config.model, display), config)
    with tempfile.TemporaryDirectory() as scratch:
        run = RunFolder.create(Path(scratch), "attack", {})
        try:
            run_warm_start(policy, {kind: tasks}, backend, config, display, lambda step, loss: None, never)
            steps = _train(policy, kind, tasks, backend, config, run, minutes, display)
        finally:
            policy.close()
        played = run.trajectories("episodes")
    solved = sum(episode.solved for episode in played)
    return AttackResult(config.model, steps, len(played), solved, tuple(_cases(played, tasks)[:_MOST_CASES]))


def _train(
    policy: Policy,
    kind: type[Env],
    tasks: Sequence[Task],
    backend: SandboxBackend,
    config: TrainConfig,
    run: RunFolder,
    minutes: float,
    display: Display,
) -> int:
    """Train until the time is used up; returns the number of steps."""
    ends = time.monotonic() + 60 * minutes

    def make_env() -> Env:
        return kind(tasks=tasks, sandbox=backend, max_turns=config.max_turns)

    def on_step(metrics: StepMetrics) -> bool:
        left_s = ends - time.monotonic()
        display.advance(
            metrics.step, f"hacked {metrics.hacked:.0%} of the solved groups, {left_s:.0f} s left"
        )
        return left_s > 0

    with (
        Rollouts(make_env) as rollouts,
        run.journal("metrics") as metrics,
        run.journal("episodes") as episodes,
    ):
        collector = RolloutCollector(policy, tasks, rollouts, config, episodes)
        trainer = GRPOTrainer(collector, metrics, CheckpointStore(run.path / "checkpoints"))
        display.phase("attack by training", config.max_steps)
        trainer.train(on_step)
    return trainer.step


def _cases(played: Iterable[Trajectory], tasks: Sequence[Task]) -> list[Case]:
    """The different episodes that count as solved and fail a held-out check, in the order found."""
    by_id, found = {task.id: task for task in tasks}, dict[tuple[str, ...], Case]()
    for episode in filter(is_hacked, played):
        actions = tuple(step.turn.text for step in episode.steps)
        case = Case(by_id[episode.key.task], actions, reset_seed(episode.key))
        found.setdefault(actions, case)
    return [*found.values()]
