"""Scripted agents: oracle, no-op, random and replay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from envkit.agent import Session
from envkit.engine.protocol import uniforms
from envkit.errors import ContractError, UsageError
from envkit.types import EpisodeKey, Task, Trajectory, Turn


@dataclass(slots=True, eq=False)
class _Script:
    key: EpisodeKey
    turns: int = 0


@final
class ScriptedAgent:
    """Answers every observation with a function of the episode, the turn and the observation.

    Args:
        name: what reports call it.
        say: ``(key, turn index, observation) -> action``, or a whole turn that was said before.
    """

    def __init__(self, name: str, say: Callable[[EpisodeKey, int, str], str | Turn]) -> None:
        self.name = name
        self._say = say
        self._waiting: list[tuple[_Script, str]] = []

    def start(self, key: EpisodeKey, system: str) -> _Script:
        return _Script(key)

    def submit(self, session: Session, observation: str) -> None:
        if not isinstance(session, _Script):
            raise ContractError(f"agent {self.name} was given a session of another agent")
        self._waiting.append((session, observation))

    def collect(self) -> Iterable[tuple[Session, Turn]]:
        asked, self._waiting = self._waiting, []
        turns: list[tuple[Session, Turn]] = []
        for session, observation in asked:
            said = self._say(session.key, session.turns, observation)
            turns.append((session, Turn(said) if isinstance(said, str) else said))
            session.turns += 1
        return turns


def oracle(solutions: Mapping[str, Sequence[str]]) -> ScriptedAgent:
    """Plays the known solution: task id -> its actions, the last one repeated if more are asked."""

    def say(key: EpisodeKey, turn: int, observation: str) -> str:
        actions = solutions[key.task]
        return actions[min(turn, len(actions) - 1)]

    return ScriptedAgent("oracle", say)


def noop(action: str = "submit") -> ScriptedAgent:
    """Does nothing and ends the episode."""
    return ScriptedAgent("no-op", lambda key, turn, observation: action)


def replay(name: str, episodes: Iterable[Trajectory], idle: str) -> ScriptedAgent:
    """Replays stored episodes turn by turn.

    Args:
        name: what reports call it.
        episodes: with turns; their keys are the ones that it can be asked.
        idle: what it says where an episode goes on that had ended.
    """
    said = {episode.key: [step.turn for step in episode.steps] for episode in episodes}

    def say(key: EpisodeKey, turn: int, observation: str) -> str | Turn:
        return said[key][turn] if turn < len(said[key]) else idle

    return ScriptedAgent(name, say)


def random_edits(tasks: Mapping[str, Task], path: str = "solution.py") -> ScriptedAgent:
    """Deletes one random line of the task's file: a floor above doing nothing.

    Raises:
        UsageError: a task has no such file.
    """
    if other := next((task.id for task in tasks.values() if path not in task.files), None):
        raise UsageError(f"the random agent deletes lines of {path}, and task {other} has no such file")

    def say(key: EpisodeKey, turn: int, observation: str) -> str:
        lines = [line for line in tasks[key.task].files[path].split("\n") if line.strip()]
        draw = uniforms((key.seed, key.step, key.group, key.row, turn), 1)[0]
        line = lines[int(draw * len(lines))]
        return f"```diff\n-{line}\n```"

    return ScriptedAgent("random", say)
