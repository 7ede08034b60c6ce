"""The agent protocol: turns observations into actions, many episodes at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from envkit.errors import AgentError
from envkit.types import EpisodeKey, Turn


class Session(Protocol):
    """An agent's state in one episode, such as history, token ids or a provider's opaque messages."""

    @property
    def key(self) -> EpisodeKey: ...


class Agent(Protocol):
    """Answers observations with actions.

    The rollout loop submits an observation for every waiting episode, then collects turns as they
    finish, so that a local engine keeps its batch full and an API keeps its connections busy.
    """

    @property
    def name(self) -> str: ...

    def start(self, key: EpisodeKey, system: str) -> Session:
        """Begin an episode. Every random draw of the session is a function of ``key``.

        Args:
            key: the episode.
            system: the environment's system message, which stands before the first observation.
        """
        ...

    def submit(self, session: Session, observation: str) -> None:
        """Queue one observation; a session has at most one in flight."""
        ...

    def collect(self) -> Iterable[tuple[Session, Turn | AgentError]]:
        """Wait for finished turns and yield them with their sessions. Empty if and only if none is pending.

        More turns may finish while the caller iterates. The caller submits nothing before the iteration ends.
        An `AgentError` instead of a turn means that no turn will come; the episode is then void.
        """
        ...


@runtime_checkable
class ChatAgent(Agent, Protocol):
    """An agent that also answers whole chats, as a harness asks for them."""

    def start_chats(self, key: EpisodeKey) -> Session:
        """Begin an episode whose observations are chats, see `envkit.Env.harness`; as `start`."""
        ...
