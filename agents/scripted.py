"""Scripted agents: oracle, no-op, baselines, random and replay."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import final

from envkit.agent import Session
from envkit.engine.protocol import uniforms
from envkit.env.authored import Baseline, require_actions
from envkit.errors import ContractError
from envkit.sandbox import SandboxBackend
from envkit.types import EpisodeKey, Task, Trajectory, Turn


@dataclass(slots=True, eq=False)
class _Script:
    key: EpisodeKey
    turns: int = 0


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

    def collect(self) -> Generator[tuple[Session, Turn]]:
        waiting, self._waiting = self._waiting, []
        for session, observation in waiting:
            action = self._act(session.key, session.turns, observation)
            session.turns += 1
            yield session, Turn(action) if isinstance(action, str) else action


def oracle(solutions: Mapping[str, Sequence[str]]) -> ScriptedAgent:
    """Play known solutions: task id -> actions. Further turns repeat the last action."""

    def act(key: EpisodeKey, turn: int, observation: str) -> str:
        actions = solutions[key.task]
        return actions[min(turn, len(actions) - 1)]

    return ScriptedAgent("oracle", act)


def noop(action: str = "submit") -> ScriptedAgent:
    """Play one action in every turn, by default the one that ends the episode."""
    return ScriptedAgent("no-op", lambda key, turn, observation: action)


#: Tasks that a baseline without a seed searches together, by several threads.
_SEARCHED_TOGETHER = 16


def baseline(chosen: Baseline, tasks: Sequence[Task], backend: SandboxBackend) -> ScriptedAgent:
    """Play an environment's baseline.

    Args:
        chosen: the baseline.
        tasks: the tasks that will be played.
        backend: makes the sandboxes in which the baseline runs programs.

    The agent raises `ContractError` if the baseline's actions are no list of texts.
    """
    by_id = {task.id: task for task in tasks}
    order = list(by_id)
    found: dict[object, Sequence[str]] = {}

    def played(task: str, seed: int = 0) -> Sequence[str]:
        actions = chosen.actions(by_id[task], seed, backend)
        return require_actions(actions, f"baseline {chosen.name}, for task {task},")

    def actions_of(key: EpisodeKey) -> Sequence[str]:
        if chosen.is_random:
            seed = int(2**53 * uniforms((key.seed, key.step, key.group, key.row), 1)[0])
            return played(key.task, seed)
        if key.task not in found:
            missing = [task for task in order[order.index(key.task) :] if task not in found]
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                some = missing[:_SEARCHED_TOGETHER]
                found.update(zip(some, pool.map(played, some), strict=True))
        return found[key.task]

    def act(key: EpisodeKey, turn: int, observation: str) -> str:
        actions = actions_of(key)
        return actions[min(turn, len(actions) - 1)]

    return ScriptedAgent(chosen.name, act)


@final
class _Replay(ScriptedAgent):
    """Repeats stored answers, also those to the chats of a harness."""

    def start_chats(self, key: EpisodeKey) -> _Script:
        return _Script(key)


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

    return _Replay(name, act)
