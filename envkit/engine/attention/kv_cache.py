"""KV state of conversations that may continue, within a limit."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import final

from envkit.engine.attention.layouts import PrefillLayout, RowCache


@dataclass(frozen=True, slots=True)
class CachedConversation:
    """KV state of all tokens of a conversation but the last.

    Args:
        prefix: the prefill of its first prompt, and of others.
        prompt: index of the prompt there.
        prompt_length: tokens of the prompt.
        row: the tokens after the prompt.
    """

    prefix: PrefillLayout
    prompt: int
    prompt_length: int
    row: RowCache


@final
class KVCache:
    """Conversations by adapter and token ids. When it is full, the one held longest is dropped.

    A dropped conversation is prefilled again, if it continues.

    Args:
        max_tokens: limit of the tokens held, prompts and their padding included.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens, self._tokens = max_tokens, 0
        self._held: OrderedDict[tuple[int, tuple[int, ...]], CachedConversation] = OrderedDict()
        #: How many conversations use each prefill, by its identity.
        self._users: dict[int, int] = {}

    def add(self, adapter: int, ids: tuple[int, ...], conversation: CachedConversation) -> None:
        """Hold a conversation, in place of an equal one. If it does not fit, the oldest ones are dropped."""
        if (equal := self._held.pop((adapter, ids), None)) is not None:
            self._count(equal, -1)
        self._held[adapter, ids] = conversation
        self._count(conversation, 1)
        while self._tokens > self.max_tokens:
            _, oldest = self._held.popitem(last=False)
            self._count(oldest, -1)

    def get(self, adapter: int, ids: tuple[int, ...]) -> CachedConversation | None:
        """Return a conversation, or ``None`` if it is not held."""
        return self._held.get((adapter, ids))

    def clear(self) -> None:
        """Drop all conversations."""
        self._held.clear()
        self._users.clear()
        self._tokens = 0

    def _count(self, conversation: CachedConversation, change: int) -> None:
        prefix = conversation.prefix
        before = self._users.get(id(prefix), 0)
        self._users[id(prefix)] = before + change
        self._tokens += change * len(conversation.row)
        if before == 0 or before + change == 0:  # its first user came, or its last one went
            self._tokens += change * prefix.tokens
        if before + change == 0:
            del self._users[id(prefix)]
