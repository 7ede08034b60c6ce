"""Validate tasks with two control agents: the oracle must solve every task, the no-op none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Final

from envkit.agents.scripted import ScriptedAgent, noop, oracle
from envkit.env import Env, oracle_actions
from envkit.measure.evaluation import episode_keys
from envkit.rollout import Rollouts
from envkit.runtime.display import Display
from envkit.sandbox import SandboxBackend
from envkit.types import Outcome, Task, Trajectory

_EPISODES_AT_ONCE: Final = 64
#: Failed oracle episodes that are played again to show what each action was answered.
_SHOWN_EPISODES: Final = 3
#: Longest part of an action and of its answer that is shown, in characters.
_SHOWN_CHARS: Final = 160


@dataclass(frozen=True, slots=True)
class TaskFault:
    """A task that a control agent solved, or failed, against expectation.

    Args:
        task: its id.
        agent: ``"oracle"`` or ``"no-op"``.
        reward: the reward that it earned.
        expected: what it should have done.
        evidence: the grader's evidence, or the error of a void episode.
        void: True if the sandbox broke; the task itself may be sound.
        transcript: a line for each action of a failed oracle, with what the environment answered; empty if it
            was not played again.
    """

    task: str
    agent: str
    reward: float
    expected: str
    evidence: str
    void: bool = False
    transcript: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.void:
            return f"{self.agent} on {self.task} is void: {self.evidence}"
        return f"{self.agent} earns {self.reward:g} on {self.task}, expected {self.expected}: {self.evidence}"


@dataclass(frozen=True, slots=True)
class ControlAgent:
    """An agent whose result is known.

    Args:
        agent: the agent.
        solves: True if it must solve every task. Otherwise it must solve none, and earn nothing.
        turns: turns that it needs, by task, if it must solve them.
    """

    agent: ScriptedAgent
    solves: bool
    turns: Mapping[str, int] = field(default_factory=dict[str, int])

    def faults(self, played: Iterable[Trajectory]) -> list[TaskFault]:
        """The episodes that did not end as expected, or are void."""
        return [fault for episode in played if (fault := self._fault(episode)) is not None]

    def _fault(self, episode: Trajectory) -> TaskFault | None:
        task, name = episode.key.task, self.agent.name
        evidence = str(episode.info.get("error") or episode.info.get("evidence"))
        if episode.outcome is Outcome.VOID:
            return TaskFault(task, name, 0.0, "a verdict", evidence, void=True)
        if episode.solved is self.solves and (self.solves or episode.reward <= 0):
            return None
        expected = "to solve it" if self.solves else "0"
        if self.turns.get(task, 0) > (had := len(episode.steps)):
            expected += f" (it needs {self.turns[task]} turns and had {had}; see max_turns)"
        return TaskFault(task, name, episode.reward, expected, evidence)


def controls(kind: type[Env], tasks: Sequence[Task]) -> list[ControlAgent]:
    """The control agents of an environment: oracle and no-op."""
    solutions = {task.id: oracle_actions(kind, task) for task in tasks}
    turns = {task: len(actions) for task, actions in solutions.items()}
    return [ControlAgent(oracle(solutions), True, turns), ControlAgent(noop(kind.noop_action), False)]


def validate_tasks(
    kind: type[Env],
    tasks: Sequence[Task],
    backend: SandboxBackend,
    display: Display,
    *,
    seed: int,
) -> list[TaskFault]:
    """Play both control agents on every task.

    Args:
        kind: the environment.
        tasks: tasks of any split.
        backend: sandbox backend.
        display: live view.
        seed: seed of the hidden inputs, which are drawn again.

    Returns:
        Faults of the oracle, then of the no-op, each in task order; empty if all tasks are sound.
    """
    kind = kind.graded_as()  # the controls need no harness

    def make_env() -> Env:
        return kind(tasks=tasks, sandbox=backend)

    faults: list[TaskFault] = []
    with Rollouts(make_env) as rollouts:
        for control in controls(kind, tasks):
            agent = control.agent
            display.phase(f"{agent.name}, must solve {'all' if control.solves else 'none'}", len(tasks))
            keys = episode_keys(tasks, 1, seed)
            for start in range(0, len(keys), _EPISODES_AT_ONCE):
                played = rollouts.play(agent, keys[start : start + _EPISODES_AT_ONCE])
                faults += control.faults(played)
                display.advance(min(start + _EPISODES_AT_ONCE, len(keys)), f"{len(faults)} broken")
    return faults


def faults_alike(faults: Iterable[TaskFault]) -> list[list[TaskFault]]:
    """Group faults that differ in nothing but the task, as after a fault of the environment's code."""
    groups: dict[TaskFault, list[TaskFault]] = {}
    for fault in faults:
        evidence = fault.evidence.replace(f"task {fault.task}", "task")
        groups.setdefault(replace(fault, task="", evidence=evidence, transcript=()), []).append(fault)
    return [*groups.values()]


def with_transcripts(
    faults: Sequence[TaskFault], kind: type[Env], tasks: Sequence[Task], backend: SandboxBackend, *, seed: int
) -> list[TaskFault]:
    """Play a failed oracle of each kind again, and note what each action was answered.

    Args:
        faults: of `validate_tasks`, whose other arguments these are.
    """
    failed = [alike[0] for alike in faults_alike(faults) if alike[0].agent == "oracle" and not alike[0].void]
    if not failed:
        return [*faults]
    kind, by_id = kind.graded_as(), {task.id: task for task in tasks}
    shown: dict[str, tuple[str, ...]] = {}
    with closing(kind(tasks=tasks, sandbox=backend)) as env:
        for fault in failed[:_SHOWN_EPISODES]:
            actions = oracle_actions(kind, by_id[fault.task])
            shown[fault.task] = (*_transcript(env, fault.task, seed, actions),)
    return [
        replace(fault, transcript=shown.get(fault.task, ())) if fault.agent == "oracle" else fault
        for fault in faults
    ]


def _transcript(env: Env, task: str, seed: int, actions: Iterable[str]) -> Iterator[str]:
    """Play actions until the episode ends, or raises; yield each with its answer, as one line."""
    doing = "reset"
    try:
        env.reset(seed=seed, options={"task": task})
        for action in actions:
            doing = _shortened(action)
            answer, _, terminated, truncated, _ = env.step(action)
            yield f"{doing} -> {_shortened(answer)}"
            if terminated or truncated:
                return
    except Exception as error:  # of the environment's own code: it is what is shown
        yield f"{doing} raised {type(error).__name__}: {_shortened(str(error))}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[: _SHOWN_CHARS - 1]}\N{HORIZONTAL ELLIPSIS}"
