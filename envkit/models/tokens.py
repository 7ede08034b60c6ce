"""Count a text's tokens with the tokenizer of a known model, where the right tokenizer is not at hand."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from envkit.models.known import DEFAULT_MODEL, SMALL_MODEL
from envkit.models.reference import is_fetched, resolve


def tokenizer_at_hand() -> str:
    """Return the id of a known model whose tokenizer is on this machine; empty if there is none."""
    if importlib.util.find_spec("tokenizers") is None:
        return ""
    return next((name for name in (DEFAULT_MODEL, SMALL_MODEL) if is_fetched(name)), "")


def token_counter(name: str) -> Callable[[str], int]:
    """Return a function that counts the tokens of a text.

    Args:
        name: id of a known model.

    Raises:
        ModelError: it cannot be fetched.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(resolve(name).path) / "tokenizer.json"))

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count
