"""Detecting stop strings in sampled tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, final

#: Most bytes of a character, and most tokens.
_CHARACTER_BYTES: Final = 4
#: Stands for bytes that are no character.
_UNDECODED: Final = "\N{REPLACEMENT CHARACTER}"


@final
class StopStrings:
    """Detects, token by token, that the sampled text contains a stop string.

    Args:
        strings: non-empty texts.
        decode: turns ids into text, special tokens included.
    """

    def __init__(self, strings: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self._strings, self._decode = strings, decode
        self._ends = {string[-1] for string in strings}
        # A token has at least one byte. One more, because some tokenizers drop a text's first space.
        self._window = 1 + max((len(string.encode()) for string in strings), default=0)
        #: By token: True if it may complete a stop string. Most may not, and need no decoding.
        self._completes: dict[int, bool] = {}

    def end(self, ids: Sequence[int]) -> bool:
        """True if the last id completes a stop string. Call it for every new id."""
        if not self._strings or not self._may_complete(ids[-1]):
            return False
        for more in range(_CHARACTER_BYTES):
            text = self._decode(ids[-self._window - more :])
            if any(string in text for string in self._strings):
                return True
            if not text.startswith(_UNDECODED):
                break
            # The window begins inside of a character, and some decoders then read nothing of a run of bytes.
        return False

    def _may_complete(self, token: int) -> bool:
        if token not in self._completes:
            # Twice, because some tokenizers drop a text's first space. A part of a character does not decode.
            text = self._decode([token, token])
            ends = (*self._ends, _UNDECODED)
            self._completes[token] = not text or any(end in text for end in ends)
        return self._completes[token]
