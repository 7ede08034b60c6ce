"""The text space: UTF-8 strings up to a byte budget."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Utf8(gymnasium.Space[str]):
    """Any string whose UTF-8 encoding has at most ``max_bytes`` bytes.

    ``gymnasium.spaces.Text`` rejects newlines and non-ASCII by default, which real text has.

    Args:
        max_bytes: inclusive upper bound on the encoded length, at least 1.
        seed: seed of the space's own generator.
    """

    def __init__(self, max_bytes: int, seed: int | np.random.Generator | None = None) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}; it must be at least 1")
        self.max_bytes = max_bytes
        super().__init__(dtype=str, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draw a short random string with newlines and non-ASCII characters, to expose parser bugs."""
        alphabet = "ab(){}[]:=<>+-*/\\\"'`#\n\t _019é√漢🙂"
        length = int(self.np_random.integers(0, min(64, self.max_bytes) + 1))
        text = "".join(alphabet[i] for i in self.np_random.integers(0, len(alphabet), length))
        return text.encode()[: self.max_bytes].decode(errors="ignore")

    def contains(self, x: object) -> bool:
        if not isinstance(x, str):
            return False
        try:
            return len(x.encode()) <= self.max_bytes
        except UnicodeEncodeError:  # lone surrogates are not text
            return False

    def clip(self, text: str) -> str:
        """Make ``text`` a member: replace lone surrogates, and cut out the middle if it is too long."""
        raw = text.encode(errors="replace")
        if len(raw) <= self.max_bytes:
            return raw.decode()
        mark = b"\n[... cut ...]\n"
        keep = self.max_bytes - len(mark)
        if keep < 1:
            return raw[: self.max_bytes].decode(errors="ignore")
        head, tail = raw[: keep - keep // 2], raw[len(raw) - keep // 2 :]
        return head.decode(errors="ignore") + mark.decode() + tail.decode(errors="ignore")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Utf8) and other.max_bytes == self.max_bytes

    def __repr__(self) -> str:
        return f"Utf8({self.max_bytes})"
