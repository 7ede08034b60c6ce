"""Recorded sessions: what a program asked and got, to the token."""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Final, final

from envkit.engine.prefix import common_prefix_length
from envkit.types import JSON

#: Tokens of a key's sessions together. Beyond, those whose last use is longest ago are dropped.
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
        stop: why the answer ended; ``None`` if the client left before.
    """

    model: str
    prompt_ids: array[int]
    kept: int
    token_ids: array[int]
    logprobs: array[float]
    stop: str | None

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


@dataclass(slots=True)
class _Owned:
    """The sessions of one key, the one whose last use is longest ago first, and their tokens together."""

    by_name: OrderedDict[str, _Session] = field(default_factory=OrderedDict[str, _Session])
    tokens: int = 0

    def drop(self, name: str) -> None:
        self.tokens -= sum(turn.tokens for turn in self.by_name.pop(name).turns)


@final
class Sessions:
    """The sessions of all keys. Nobody sees another one's. Used by one event loop.

    Args:
        max_tokens: see `MAX_TOKENS`.
    """

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._owned: dict[str, _Owned] = {}

    def add(
        self,
        owner: str,
        name: str,
        model: str,
        prompt: Sequence[int],
        drawn: Sequence[tuple[int, float]],
        stop: str | None,
    ) -> None:
        """Record an answer. If the session alone exceeds the limit, it is dropped.

        Args:
            owner: digest of the key that asked.
            name: of the session.
            model: that answered.
            prompt: all ids of the prompt.
            drawn: ids of the answer with their log-probabilities.
            stop: why it ended; ``None`` if the client left before.
        """
        owned = self._owned.setdefault(owner, _Owned())
        session = owned.by_name.setdefault(name, _Session())
        owned.by_name.move_to_end(name)
        read = array("i", prompt)
        # One id at least is new: the answer follows it.
        kept = common_prefix_length(session.ids, read[:-1])
        answer = array("i", (token for token, _ in drawn))
        logprobs = array("d", (logprob for _, logprob in drawn))
        turn = RecordedTurn(model, read[kept:], kept, answer, logprobs, stop)
        session.turns.append(turn)
        session.ids = read + answer
        owned.tokens += turn.tokens
        while owned.tokens > self._max_tokens:  # at last, this one
            owned.drop(next(iter(owned.by_name)))

    def turns(self, owner: str, name: str) -> list[RecordedTurn]:
        """The answers of a session, oldest first.

        Raises:
            LookupError: the key has no such session, or it was dropped.
        """
        return [*self._owned[owner].by_name[name].turns]

    def delete(self, owner: str, name: str) -> None:
        """Forget a session.

        Raises:
            LookupError: as for `turns`.
        """
        self._owned[owner].drop(name)

    def keep(self, owners: Set[str]) -> None:
        """Forget the sessions of all other keys."""
        for gone in self._owned.keys() - owners:
            del self._owned[gone]
