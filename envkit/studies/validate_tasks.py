"""Verifying tasks: the oracle must solve each one, and doing nothing must solve none."""

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

_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class TaskFault:
    """A task that a control agent earns the wrong reward on.

    Args:
        task: its id.
        agent: ``"oracle"`` or ``"no-op"``.
        reward: what the agent earned.
        expected: what it must earn.
        evidence: the grader's words, or what broke.
        void: whether the machinery broke, which says nothing of the task.
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
    """What is wrong with tasks, where a control has earned ``expected`` on sound ones."""
    return [
        TaskFault(
            each.key.task,
            control,
            each.reward,
            expected,
            str(each.info.get("error") or each.info.get("evidence")),
            each.outcome is Outcome.VOID,
        )
        for each in played
        if each.reward != expected or each.outcome is Outcome.VOID
    ]


def controls(kind: type[Env], tasks: Sequence[Task]) -> list[tuple[ScriptedAgent, float]]:
    """The scripted agents that bound every score, each with the reward it must earn."""
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
    """Play both controls on every task.

    Args:
        kind: the environment.
        tasks: of any split.
        backend: sandbox backend.
        display: live view.
        should_stop: polled while episodes are played.
        seed: of the hidden inputs that are drawn anew.

    Returns:
        What is wrong, in task order per agent; empty when all is well.

    Raises:
        Stopped: the user asked to stop.
    """

    def make_env() -> Env:
        return kind(tasks=tasks, sandbox=backend, max_turns=1)

    broken: list[TaskFault] = []
    with Rollouts(make_env, should_stop=should_stop) as rollouts:
        for agent, expected in controls(kind, tasks):
            display.phase(f"{agent.name}, must earn {expected:g}", len(tasks))
            wanted = episode_keys(tasks, 1, seed)
            for start in range(0, len(wanted), _AT_ONCE):
                played = rollouts.play(agent, wanted[start : start + _AT_ONCE])
                broken += faults_of(agent.name, expected, played)
                display.advance(min(start + _AT_ONCE, len(wanted)), f"{len(broken)} broken")
    return broken
