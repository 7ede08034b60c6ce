"""Where a turn's text has come to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final


@final
class StopStrings:
    """Tells of sampled ids whether their text has a stop string, token by token.

    Args:
        strings: none of them empty.
        decode: the text of ids; none is left out of it.
    """

    def __init__(self, strings: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self._strings, self._decode = strings, decode
        self._ends = {string[-1] for string in strings}
        # A token is a byte at the least; and one more, for some tokenizers drop a text's first space.
        self._most = 1 + max((len(string.encode()) for string in strings), default=0)
        #: Whether a token may complete a string: most may not, and need no look at those before.
        self._completes: dict[int, bool] = {}

    def end(self, ids: Sequence[int]) -> bool:
        """Whether the latest of the ids completes a stop string; of those before it none has."""
        if not self._strings or not self._may_complete(ids[-1]):
            return False
        text = self._decode(ids[-self._most :])
        return any(string in text for string in self._strings)

    def _may_complete(self, token: int) -> bool:
        if (known := self._completes.get(token)) is None:
            text = self._decode([token])
            # By itself a part of a character cannot be read, and to some tokenizers a space is nothing.
            known = not text or any(end in text for end in (*self._ends, "\N{REPLACEMENT CHARACTER}"))
            self._completes[token] = known
        return known
