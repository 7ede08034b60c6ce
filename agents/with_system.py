"""An agent whose episodes begin with a system message of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from envkit.agent import Agent, Session
from envkit.errors import AgentError
from envkit.types import EpisodeKey, Turn


@final
class WithSystem:
    """Lets another agent play, with a system message in place of the environment's.

    Args:
        agent: answers.
        system: the message.
    """

    def __init__(self, agent: Agent, system: str) -> None:
        self.name = agent.name
        self._agent, self._system = agent, system

    def start(self, key: EpisodeKey, system: str) -> Session:
        return self._agent.start(key, self._system)

    def submit(self, session: Session, observation: str) -> None:
        self._agent.submit(session, observation)

    def collect(self) -> Iterable[tuple[Session, Turn | AgentError]]:
        return self._agent.collect()
