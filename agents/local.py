"""Agent for a model in a local engine; its turns carry exact token ids and log-probabilities."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from envkit.agent import Session
from envkit.engine.chat import ChatRenderer, Chats, Conversation, UnreadableError
from envkit.engine.protocol import Engine, Request, Sampling
from envkit.errors import AgentError, ConfigError, ContractError, ModelError
from envkit.runtime.stop import ShouldStop, never
from envkit.types import EpisodeKey, Tokens, Turn, Usage


@dataclass(slots=True, eq=False)
class _Session:
    """An episode and its conversation with the model.

    Args:
        is_alone: True if its KV state shares no first prompt with others, because it was computed again.
    """

    key: EpisodeKey
    talk: Conversation | Chats
    is_alone: bool = False


@final
class LocalAgent:
    """Answers with an engine. Waiting sessions are decoded together, as many as its memory can hold.

    Args:
        name: name in reports.
        engine: samples the tokens.
        renderer: turns observations into ids.
        sampling: temperature and token budget of every turn.
        max_turns: turns per episode. The engine drops an episode's KV state after the last one.
        adapter: number of the engine's adapter that answers, or a mapping from episode seed to number.
        max_context_length: longest context of a turn, in tokens. A longer one is truncated to the first
            prompt and the latest observation. 0 for no limit but the engine's own. A turn beyond that one is
            an empty answer that ends with ``"length"``.
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
        self._waiting: list[_Session] = []
        #: Those whose latest observation the model cannot read, with what stands in place of its answer.
        self._unread: list[tuple[_Session, Turn | AgentError]] = []
        #: Tokens of the longest conversation, of those that began together.
        self._longest = 0

    def start(self, key: EpisodeKey, system: str) -> _Session:
        limits = self._max_context_length, self._engine.longest
        return _Session(key, Conversation(self._renderer, system, *limits, self._shots))

    def start_chats(self, key: EpisodeKey) -> _Session:
        if self._shots:
            raise ConfigError(f"agent {self.name}: shots cannot stand before the chats of a harness")
        return _Session(key, Chats(self._renderer, self._max_context_length, self._engine.longest))

    def submit(self, session: Session, observation: str) -> None:
        if not isinstance(session, _Session):
            raise ContractError(f"agent {self.name} got a session of another agent")
        try:
            session.talk.observe(observation)
        except ModelError as error:
            if not session.talk.turns:  # which the task decides
                advice = "use shorter tasks, or a model with a longer context"
                told = f"{error}; {advice}" if isinstance(error, UnreadableError) else str(error)
                task = session.key.task
                raise ModelError(f"task {task}: {told}" if task else told) from error
            # A later one may follow from the model's own answers, or be one that a program should not make.
            is_own = isinstance(error, UnreadableError)
            empty = Turn("", Tokens((), (), ()), stop="length")
            self._unread.append((session, empty if is_own else AgentError(f"agent {self.name}: {error}")))
        else:
            self._waiting.append(session)

    def collect(self) -> Generator[tuple[Session, Turn | AgentError]]:
        unread, self._unread = self._unread, []
        yield from unread
        if not self._waiting:
            return  # the engine keeps what it holds
        # Sorted by key, so that batches do not depend on the order of submission.
        waiting = sorted(self._waiting, key=lambda s: (s.key.seed, s.key.step, s.key.group, s.key.row))
        waiting, self._waiting = self._by_memory(waiting)
        started = time.monotonic()
        requests = [self._request(session) for session in waiting]
        for index, completion in self._engine.stream(requests, self._sampling, self._should_stop):
            session, talk = waiting[index], waiting[index].talk
            usage = Usage(len(talk.ids), len(completion.ids), time.monotonic() - started)
            tokens = Tokens(talk.new_ids, completion.ids, completion.logprobs, talk.kept)
            talk.answer(completion.ids)
            self._longest = max(self._longest, len(talk.ids))
            yield session, Turn(self._renderer.text(completion.ids), tokens, usage, completion.stop)

    def _by_memory(self, waiting: list[_Session]) -> tuple[list[_Session], list[_Session]]:
        """Divide sessions into those to answer now and those that wait for the engine's memory.

        A conversation that the engine has dropped is prefilled again when it continues. If all continued,
        most would be dropped again, turn after turn. So only those continue that are expected to fit until
        their end.
        """
        if not any(session.talk.turns for session in waiting):
            self._longest = 0  # what is answered depends on no earlier episodes
        held = [s for s in waiting if not s.talk.turns or self._engine.holds(self._request(s))]
        limit = self._engine.held_tokens
        if len(held) == len(waiting) or self._longest > limit:
            return waiting, []
        prompts = {s.talk.ids[: s.talk.first_prompt] for s in held if not s.is_alone}
        shared = sum(s.talk.first_prompt for s in held if not s.is_alone) - sum(map(len, prompts))
        room = limit - sum(self._expected(session) for session in held) + shared
        now = {*held}
        for session in waiting:
            if session not in now and (not now or self._expected(session) <= room):
                now.add(session)
                session.is_alone = True
                room -= self._expected(session)
        return [s for s in waiting if s in now], [s for s in waiting if s not in now]

    def _expected(self, session: _Session) -> int:
        """Tokens that a conversation is expected to reach."""
        return max(len(session.talk.ids), self._longest)

    def _request(self, session: _Session) -> Request:
        key, talk = session.key, session.talk
        return Request(
            talk.ids,
            (key.seed, key.step, key.group, key.row, talk.turns),
            adapter=self._adapter if isinstance(self._adapter, int) else self._adapter[key.seed],
            earlier_tokens=len(talk.ids) - len(talk.new_ids),
            keep_cache=talk.turns + 1 < self._max_turns,
        )
