"""The local agent: a small model in an engine, token-exact."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import final

from envkit.agent import Session
from envkit.engine.chat import ChatRenderer
from envkit.engine.protocol import Engine, Request, Sampling
from envkit.errors import ContractError
from envkit.types import EpisodeKey, Tokens, Turn, Usage


@dataclass(slots=True, eq=False)
class _Conversation:
    """An episode's ids. ``new_ids`` came with the latest observation; ``kept`` as in `Tokens`."""

    key: EpisodeKey
    system: str
    ids: tuple[int, ...] = ()
    new_ids: tuple[int, ...] = ()
    kept: int | None = None
    #: How many ids the episode began with.
    began: int = 0
    turns: int = 0
    closed: bool = field(default=True)


@final
class LocalAgent:
    """Answers with an engine; all waiting sessions are decoded together.

    Args:
        name: what reports call it.
        engine: draws the tokens.
        renderer: turns observations into ids.
        sampling: temperature and token budget of every turn.
        max_turns: after how many turns every episode is over; an engine need not hold on to it then.
        adapter: number of the engine's adapter that answers; or, by the seeds of episodes, those that do.
        max_context_length: a turn that would be asked with more ids forgets all between what its episode
            began with and the latest observation. 0 for no bound but the engine's own.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        renderer: ChatRenderer,
        sampling: Sampling,
        max_turns: int = 1,
        adapter: int | Mapping[int, int] = 0,
        max_context_length: int = 0,
    ) -> None:
        self.name = name
        self._engine = engine
        self._renderer = renderer
        self._sampling, self._max_turns, self._adapter = sampling, max_turns, adapter
        self._longest = max_context_length or sys.maxsize
        self._waiting: list[_Conversation] = []

    def start(self, key: EpisodeKey, system: str) -> _Conversation:
        return _Conversation(key, system)

    def submit(self, session: Session, observation: str) -> None:
        if not isinstance(session, _Conversation):
            raise ContractError(f"agent {self.name} was given a session of another agent")
        session.kept = None
        if not session.turns:
            session.new_ids = self._renderer.first(session.system, observation)
            session.began = len(session.new_ids)
        else:
            session.new_ids = self._renderer.following(observation, closed=session.closed)
            if len(session.ids) + len(session.new_ids) > self._longest:
                session.new_ids = self._renderer.following(observation, closed=False)  # an answer of nothing
                session.kept = session.began
        session.ids = (*session.ids[: session.kept], *session.new_ids)
        self._waiting.append(session)

    def collect(self) -> Generator[tuple[Session, Turn]]:
        # In key order, so that what is decoded together does not depend on who asked first.
        asked = sorted(self._waiting, key=lambda s: (s.key.seed, s.key.step, s.key.group, s.key.row))
        self._waiting = []
        started = time.monotonic()
        requests = [self._request(session) for session in asked]
        for place, completion in self._engine.stream(requests, self._sampling):
            session = asked[place]
            session.ids += completion.ids
            session.closed = completion.ids[-1] == self._renderer.stop_id  # a stop string leaves it open
            session.turns += 1
            waited_s = time.monotonic() - started
            usage = Usage(len(session.ids) - len(completion.ids), len(completion.ids), waited_s)
            tokens = Tokens(session.new_ids, completion.ids, completion.logprobs, session.kept)
            yield session, Turn(self._renderer.text(completion.ids), tokens, usage, completion.stop)

    def _request(self, session: _Conversation) -> Request:
        key = session.key
        return Request(
            session.ids,
            (key.seed, key.step, key.group, key.row, session.turns),
            adapter=self._adapter if isinstance(self._adapter, int) else self._adapter[key.seed],
            known=len(session.ids) - len(session.new_ids),
            goes_on=session.turns + 1 < self._max_turns,
        )
