"""The local agent: a small model in an engine, token-exact."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from envkit.agent import Session
from envkit.engine.chat import ChatRenderer
from envkit.engine.protocol import Engine, Request, Sampling
from envkit.errors import ContractError
from envkit.types import EpisodeKey, Tokens, Turn, Usage


@dataclass(slots=True, eq=False)
class _Conversation:
    """An episode's append-only ids. ``new_ids`` came with the latest observation."""

    key: EpisodeKey
    system: str
    ids: tuple[int, ...] = ()
    new_ids: tuple[int, ...] = ()
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
        adapter: number of the engine's adapter that answers.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        renderer: ChatRenderer,
        sampling: Sampling,
        max_turns: int = 1,
        adapter: int = 0,
    ) -> None:
        self.name = name
        self._engine = engine
        self._renderer = renderer
        self._sampling, self._max_turns, self._adapter = sampling, max_turns, adapter
        self._waiting: list[_Conversation] = []

    def start(self, key: EpisodeKey, system: str) -> _Conversation:
        return _Conversation(key, system)

    def submit(self, session: Session, observation: str) -> None:
        if not isinstance(session, _Conversation):
            raise ContractError(f"agent {self.name} was given a session of another agent")
        if session.turns:
            session.new_ids = self._renderer.following(observation, closed=session.closed)
        else:
            session.new_ids = self._renderer.first(session.system, observation)
        session.ids += session.new_ids
        self._waiting.append(session)

    def collect(self) -> Sequence[tuple[Session, Turn]]:
        # In key order, so that what is decoded together does not depend on who asked first.
        asked = sorted(self._waiting, key=lambda s: (s.key.step, s.key.group, s.key.row))
        self._waiting = []
        started = time.monotonic()
        requests = [self._request(session) for session in asked]
        completions = self._engine.generate(requests, self._sampling)
        share_s = (time.monotonic() - started) / max(len(asked), 1)
        turns: list[tuple[Session, Turn]] = []
        for session, completion in zip(asked, completions, strict=True):
            session.ids += completion.ids
            session.closed = completion.stop == "stop"
            session.turns += 1
            usage = Usage(len(session.ids) - len(completion.ids), len(completion.ids), share_s)
            tokens = Tokens(session.new_ids, completion.ids, completion.logprobs)
            turns.append((session, Turn(self._renderer.text(completion.ids), tokens, usage, completion.stop)))
        return turns

    def _request(self, session: _Conversation) -> Request:
        key = session.key
        return Request(
            session.ids,
            (key.seed, key.step, key.group, key.row, session.turns),
            adapter=self._adapter,
            known=len(session.ids) - len(session.new_ids),
            goes_on=session.turns + 1 < self._max_turns,
        )
