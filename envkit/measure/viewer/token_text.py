"""Decode the sampled tokens of a recorded answer one by one, with the run's tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from envkit.errors import MissingExtraError, ModelError
from envkit.runtime.cache import cache_dir

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Bytes of the longest UTF-8 character. It is complete after at most as many tokens.
_MAX_CHARACTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class TokenText:
    """Text that one token adds.

    Args:
        text: empty if the token ends inside a character; the token that completes it has the character.
        special: True for special tokens, such as the end of a turn, which are not part of the answer's text.
    """

    text: str
    special: bool


@final
class TokenDecoder:
    """Decodes token ids with one tokenizer.

    Args:
        tokenizer: tokenizer of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(id for id, token in added.items() if token.special)

    def decode(self, ids: Sequence[int], text: str) -> list[TokenText] | None:
        """Return one piece per id; ``None`` if they do not join to ``text`` (another tokenizer made them)."""
        try:
            pieces = self._pieces(ids)
        except OverflowError:  # an id that no tokenizer has
            return None
        joined = "".join(piece.text for piece in pieces if not piece.special)
        return pieces if joined == text else None

    def _pieces(self, ids: Sequence[int]) -> list[TokenText]:
        pieces: list[TokenText] = []
        start = read = 0  # decoded from `start`, because a token's text may depend on the one before
        for end, id in enumerate(ids, start=1):
            before, after = self._text(ids[start:read]), self._text(ids[start:end])
            is_part = (
                after.endswith("\N{REPLACEMENT CHARACTER}")
                and end < len(ids)
                and end - read < _MAX_CHARACTER_BYTES
            )
            pieces.append(TokenText("" if is_part else after[len(before) :], id in self._special))
            if not is_part:
                start, read = read, end
        return pieces

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


def token_decoder(model: str) -> TokenDecoder:
    """Load the tokenizer of a model from this machine; never from a model hub.

    Raises:
        MissingExtraError: tokenizers is not installed.
        ModelError: the model's tokenizer is not on this machine, or cannot be read.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(error.name or "tokenizers", "train") from error
    path = _file(model)
    try:
        return TokenDecoder(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{path}: not a tokenizer ({error})") from error


def _file(model: str) -> Path:
    """Path of the model's ``tokenizer.json``: in its folder, in envkit's cache or in the hub's cache."""
    name = "tokenizer.json"
    if os.path.isdir(model):
        found = Path(model) / name
    elif "/" in model:
        found = _in_hub_cache(model, name)
    else:
        found = cache_dir() / "models" / model / name
    if found is None or not os.path.isfile(found):
        raise ModelError(
            f"the tokenizer of {model!r} is not on this machine; fetch it with `envkit.models.resolve`"
        )
    return found


def _in_hub_cache(model: str, name: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "train") from error
    try:
        found = try_to_load_from_cache(model, name)
    except ValueError:  # not a valid name on the hub
        return None
    return Path(found) if isinstance(found, str) else None
