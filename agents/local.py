"""Agent for a model in a local engine; its turns carry exact token ids and log-probabilities."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from envkit.agent import Session
from envkit.engine.chat import ChatRenderer
from envkit.engine.protocol import Engine, Request, Sampling
from envkit.errors import ContractError
from envkit.stop import ShouldStop, never
from envkit.types import EpisodeKey, Tokens, Turn, Usage


@dataclass(slots=True, eq=False)
class _Conversation:
    """An episode's token ids. ``new_ids`` belong to the latest observation; ``kept`` as in `Tokens`."""

    key: EpisodeKey
    system: str
    ids: tuple[int, ...] = ()
    new_ids: tuple[int, ...] = ()
    kept: int | None = None
    #: Length of the first prompt.
    first_prompt: int = 0
    turns: int = 0
    closed: bool = field(default=True)


@final
class LocalAgent:
    """Answers with an engine. All waiting sessions are decoded together.

    Args:
        name: name in reports.
        engine: samples the tokens.
        renderer: turns observations into ids.
        sampling: temperature and token budget of every turn.
        max_turns: turns per episode. The engine drops an episode's KV state after the last one.
        adapter: number of the engine's adapter that answers, or a mapping from episode seed to number.
        max_context_length: longest context of a turn, in tokens. A longer one is truncated to the first
            prompt and the latest observation. 0 for no limit but the engine's own.
        should_stop: polled while the engine decodes.
        shots: observations with their right answers. Every conversation begins with them: few-shot prompting.
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
        should_stop: ShouldStop = never,
        shots: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.name = name
        self._engine = engine
        self._renderer = renderer
        self._sampling, self._max_turns, self._adapter = sampling, max_turns, adapter
        self._should_stop, self._shots = should_stop, shots
        self._max_context_length = max_context_length or sys.maxsize
        self._waiting: list[_Conversation] = []

    def start(self, key: EpisodeKey, system: str) -> _Conversation:
        return _Conversation(key, system)

    def submit(self, session: Session, observation: str) -> None:
        if not isinstance(session, _Conversation):
            raise ContractError(f"agent {self.name} got a session of another agent")
        session.kept = None
        if not session.turns:
            session.new_ids = self._renderer.conversation(session.system, self._shots, observation)
            session.first_prompt = len(session.new_ids)
        else:
            session.new_ids = self._renderer.following(observation, closed=session.closed)
            if len(session.ids) + len(session.new_ids) > self._max_context_length:
                # closed=False: the dropped answers are rendered as one empty answer.
                session.new_ids = self._renderer.following(observation, closed=False)
                session.kept = session.first_prompt
        session.ids = (*session.ids[: session.kept], *session.new_ids)
        self._waiting.append(session)

    def collect(self) -> Generator[tuple[Session, Turn]]:
        # Sorted by key, so that batches do not depend on the order of submission.
        waiting = sorted(self._waiting, key=lambda s: (s.key.seed, s.key.step, s.key.group, s.key.row))
        self._waiting = []
        started = time.monotonic()
        requests = [self._request(session) for session in waiting]
        for index, completion in self._engine.stream(requests, self._sampling, self._should_stop):
            session = waiting[index]
            session.ids += completion.ids
            # A stop string ends the answer, but does not close the turn.
            session.closed = completion.ids[-1] == self._renderer.stop_id
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
            earlier_tokens=len(session.ids) - len(session.new_ids),
            keep_cache=session.turns + 1 < self._max_turns,
        )
