"""Validate tasks with two control agents: the oracle must solve every task, the no-op none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from envkit.agents.scripted import ScriptedAgent, noop, oracle
from envkit.benchmark.evaluation import episode_keys
from envkit.display import Display
from envkit.env import Env
from envkit.rollout import Rollouts
from envkit.sandbox import SandboxBackend
from envkit.stop import ShouldStop
from envkit.types import Outcome, Task, Trajectory

_EPISODES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class TaskFault:
    """A task on which a control agent earned the wrong reward.

    Args:
        task: its id.
        agent: ``"oracle"`` or ``"no-op"``.
        reward: the reward that the agent earned.
        expected: the reward that it should earn.
        evidence: the grader's evidence, or the error of a void episode.
        void: True if the sandbox broke; the task itself may be sound.
    """

    task: str
    agent: str
    reward: float
    expected: float
    evidence: str
    void: bool = False

    def __str__(self) -> str:
        if self.void:
            return f"{self.agent} on {self.task} is void: {self.evidence}"
        return (
            f"{self.agent} earns {self.reward:g} on {self.task}, expected {self.expected:g}: {self.evidence}"
        )


def faults_of(control: str, expected: float, played: Iterable[Trajectory]) -> list[TaskFault]:
    """List the tasks on which a control agent did not earn ``expected``, or whose episode is void."""
    return [
        TaskFault(
            episode.key.task,
            control,
            episode.reward,
            expected,
            str(episode.info.get("error") or episode.info.get("evidence")),
            episode.outcome is Outcome.VOID,
        )
        for episode in played
        if episode.reward != expected or episode.outcome is Outcome.VOID
    ]


def controls(kind: type[Env], tasks: Sequence[Task]) -> list[tuple[ScriptedAgent, float]]:
    """Return the control agents, oracle and no-op, each with the reward that it must earn."""
    return [(oracle({task.id: kind.oracle(task) for task in tasks}), 1.0), (noop(kind.noop_action), 0.0)]


def validate_tasks(
    kind: type[Env],
    tasks: Sequence[Task],
    backend: SandboxBackend,
    display: Display,
    should_stop: ShouldStop,
    *,
    seed: int,
) -> list[TaskFault]:
    """Play both control agents on every task.

    Args:
        kind: the environment.
        tasks: tasks of any split.
        backend: sandbox backend.
        display: live view.
        should_stop: polled while episodes are played.
        seed: seed of the hidden inputs, which are drawn again.

    Returns:
        Faults of the oracle, then of the no-op, each in task order; empty if all tasks are sound.

    Raises:
        Stopped: the user asked to stop.
    """

    def make_env() -> Env:
        return kind(tasks=tasks, sandbox=backend)

    faults: list[TaskFault] = []
    with Rollouts(make_env, should_stop=should_stop) as rollouts:
        for agent, expected in controls(kind, tasks):
            display.phase(f"{agent.name}, must earn {expected:g}", len(tasks))
            keys = episode_keys(tasks, 1, seed)
            for start in range(0, len(keys), _EPISODES_AT_ONCE):
                played = rollouts.play(agent, keys[start : start + _EPISODES_AT_ONCE])
                faults += faults_of(agent.name, expected, played)
                display.advance(min(start + _EPISODES_AT_ONCE, len(keys)), f"{len(faults)} broken")
    return faults
