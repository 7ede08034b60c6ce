"""Decode the sampled tokens of a recorded answer one by one, with the run's tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from envkit.errors import MissingExtraError, ModelError
from envkit.models import cache_dir

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Bytes of the longest character in UTF-8. After as many tokens of a byte each it is whole, or never will be.
_LONGEST = 4


@dataclass(frozen=True, slots=True)
class TokenText:
    """Text that one token adds.

    Args:
        text: empty if a character's bytes are not complete; the token that completes it has the character.
        special: True for special tokens, such as the end of a turn, which are not part of the answer's text.
    """

    text: str
    special: bool


@final
class TokenDecoder:
    """Decodes token ids with one tokenizer.

    Args:
        tokenizer: as `tokenizers` reads it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        marks = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(id for id, token in marks.items() if token.special)

    def spell(self, ids: Sequence[int], text: str) -> list[TokenText] | None:
        """One piece per id, or ``None`` if together they do not say ``text``: another tokenizer made them."""
        try:
            pieces = self._pieces(ids)
        except OverflowError:  # an id that no tokenizer has
            return None
        said = "".join(piece.text for piece in pieces if not piece.special)
        return pieces if said == text else None

    def _pieces(self, ids: Sequence[int]) -> list[TokenText]:
        pieces: list[TokenText] = []
        start = read = 0  # the pieces before are decoded again: what a token says may depend on them
        for end, id in enumerate(ids, start=1):
            before, now = self._decode(ids[start:read]), self._decode(ids[start:end])
            is_part = now.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids) and end - read < _LONGEST
            pieces.append(TokenText("" if is_part else now[len(before) :], id in self._special))
            if not is_part:
                start, read = read, end
        return pieces

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


def token_decoder(model: str) -> TokenDecoder:
    """Load the tokenizer of a model from this machine; never from a model hub.

    Raises:
        MissingExtraError: tokenizers is not installed.
        ModelError: there is no tokenizer of that model on this machine, or it cannot be read.
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
    """Where the model's ``tokenizer.json`` lies: in a folder, in envkit's cache or in that of the hub."""
    name = "tokenizer.json"
    if os.path.isdir(model):
        found = Path(model) / name
    elif "/" in model:
        found = _of_hub(model, name)
    else:
        found = cache_dir() / "models" / model / name
    if found is None or not os.path.isfile(found):
        raise ModelError(
            f"the tokenizer of {model!r} is not on this machine; `envkit.models.resolve` fetches it"
        )
    return found


def _of_hub(model: str, name: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "train") from error
    try:
        found = try_to_load_from_cache(model, name)
    except ValueError:  # no name that a hub could know
        return None
    return Path(found) if isinstance(found, str) else None
