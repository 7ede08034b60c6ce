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
        name: name in reports.
        act: ``(key, turn index, observation) -> action``; a stored `Turn` may be returned as it is.
    """

    def __init__(self, name: str, act: Callable[[EpisodeKey, int, str], str | Turn]) -> None:
        self.name = name
        self._act = act
        self._waiting: list[tuple[_Script, str]] = []

    def start(self, key: EpisodeKey, system: str) -> _Script:
        return _Script(key)

    def submit(self, session: Session, observation: str) -> None:
        if not isinstance(session, _Script):
            raise ContractError(f"agent {self.name} was given a session of another agent")
        self._waiting.append((session, observation))

    def collect(self) -> Iterable[tuple[Session, Turn]]:
        waiting, self._waiting = self._waiting, []
        turns: list[tuple[Session, Turn]] = []
        for session, observation in waiting:
            action = self._act(session.key, session.turns, observation)
            turns.append((session, Turn(action) if isinstance(action, str) else action))
            session.turns += 1
        return turns


def oracle(solutions: Mapping[str, Sequence[str]]) -> ScriptedAgent:
    """Play known solutions: task id -> actions. Further turns repeat the last action."""

    def act(key: EpisodeKey, turn: int, observation: str) -> str:
        actions = solutions[key.task]
        return actions[min(turn, len(actions) - 1)]

    return ScriptedAgent("oracle", act)


def noop(action: str = "submit") -> ScriptedAgent:
    """Play one action in every turn, by default the one that ends the episode."""
    return ScriptedAgent("no-op", lambda key, turn, observation: action)


def replay(name: str, episodes: Iterable[Trajectory], idle: str) -> ScriptedAgent:
    """Replay stored episodes turn by turn.

    Args:
        name: name in reports.
        episodes: episodes with their turns. Only their keys can be played.
        idle: action for turns after the stored ones.
    """
    turns = {episode.key: [step.turn for step in episode.steps] for episode in episodes}

    def act(key: EpisodeKey, turn: int, observation: str) -> str | Turn:
        return turns[key][turn] if turn < len(turns[key]) else idle

    return ScriptedAgent(name, act)


def random_edits(tasks: Mapping[str, Task], path: str = "solution.py") -> ScriptedAgent:
    """Delete one random line of the task's file in every turn: a baseline slightly above doing nothing.

    Raises:
        UsageError: a task has no such file.
    """
    if unfit := next((task.id for task in tasks.values() if path not in task.files), None):
        raise UsageError(f"the random agent deletes lines of {path}, and task {unfit} has no such file")

    def act(key: EpisodeKey, turn: int, observation: str) -> str:
        lines = [line for line in tasks[key.task].files[path].split("\n") if line.strip()]
        draw = uniforms((key.seed, key.step, key.group, key.row, turn), 1)[0]
        line = lines[int(draw * len(lines))]
        return f"```diff\n-{line}\n```"

    return ScriptedAgent("random", act)
