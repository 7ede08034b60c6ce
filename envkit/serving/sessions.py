"""Recorded sessions: what a program asked and got, to the token."""

from __future__ import annotations

import math
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, final

from envkit.engine.prefix import common_prefix_length
from envkit.types import JSON

#: Tokens of a client's sessions together. Beyond, those whose last use is longest ago are dropped.
MAX_TOKENS: Final = 16 * 2**20
#: A turn counts as so many tokens more: its memory beside them.
_TURN_TOKENS: Final = 32


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """One answer, as `envkit.types.Tokens` records it.

    Args:
        model: that answered.
        prompt_ids: ids of the prompt, without those that are kept.
        kept: number of ids of the session so far, that precede them. If it is fewer than all, the session
            branches: the program has rewritten its history, or holds several conversations.
        token_ids: ids of the answer.
        logprobs: of these, under the distribution that they were drawn from; NaN if the engine does not tell.
        stop: why the answer ended.
    """

    model: str
    prompt_ids: array[int]
    kept: int
    token_ids: array[int]
    logprobs: array[float]
    stop: str

    @property
    def tokens(self) -> int:
        """Tokens in memory, with what a turn takes beside them."""
        return len(self.prompt_ids) + len(self.token_ids) + _TURN_TOKENS

    def to_json(self) -> dict[str, JSON]:
        """Plain data, with the names of the API."""
        return {
            "model": self.model,
            "prompt_token_ids": [*self.prompt_ids],
            "kept": self.kept,
            "token_ids": [*self.token_ids],
            "logprobs": [None if math.isnan(logprob) else logprob for logprob in self.logprobs],
            "finish_reason": self.stop,
        }


@dataclass(slots=True)
class _Session:
    turns: list[RecordedTurn] = field(default_factory=list[RecordedTurn])
    #: All ids that the latest answer saw, and its own.
    ids: array[int] = field(default_factory=lambda: array("i"))


@final
class Sessions:
    """The sessions of all clients. Nobody sees another one's: a session belongs to the key that began it.

    Args:
        max_tokens: see `MAX_TOKENS`.
    """

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        #: By client.
        self._tokens = Counter[str]()
        self._sessions: OrderedDict[tuple[str, str], _Session] = OrderedDict()
        self._lock = threading.Lock()

    def add(
        self,
        client: str,
        name: str,
        model: str,
        prompt: Sequence[int],
        drawn: Sequence[tuple[int, float]],
        stop: str,
    ) -> None:
        """Record an answer. If the session alone exceeds the limit, it is dropped.

        Args:
            client: who asked.
            name: of the session.
            model: that answered.
            prompt: all ids of the prompt.
            drawn: ids of the answer with their log-probabilities.
            stop: why it ended.
        """
        with self._lock:
            session = self._sessions.setdefault((client, name), _Session())
            self._sessions.move_to_end((client, name))
            read = array("i", prompt)
            # One id at least is new: the answer follows it.
            kept = common_prefix_length(session.ids, read[:-1])
            answer = array("i", (token for token, _ in drawn))
            logprobs = array("d", (logprob for _, logprob in drawn))
            turn = RecordedTurn(model, read[kept:], kept, answer, logprobs, stop)
            session.turns.append(turn)
            session.ids = read + answer
            self._tokens[client] += turn.tokens
            while self._tokens[client] > self._max_tokens:  # at last, this one
                self._drop(next(key for key in self._sessions if key[0] == client))

    def turns(self, client: str, name: str) -> list[RecordedTurn]:
        """The answers of a session, oldest first.

        Raises:
            LookupError: the client has no such session, or it was dropped.
        """
        with self._lock:
            return [*self._sessions[client, name].turns]

    def delete(self, client: str, name: str) -> None:
        """Forget a session.

        Raises:
            LookupError: as for `turns`.
        """
        with self._lock:
            self._drop((client, name))

    def _drop(self, key: tuple[str, str]) -> None:
        self._tokens[key[0]] -= sum(turn.tokens for turn in self._sessions.pop(key).turns)
