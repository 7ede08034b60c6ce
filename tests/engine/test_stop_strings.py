"""Detection of the token that completes a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from envkit.engine.stop_strings import StopStrings

#: Characters that share tokens or need several tokens.
TEXTS = st.text(st.sampled_from("\n`x é€🙂a"), max_size=12)


def first_end(strings: Sequence[str], ids: Sequence[int], tokenizer: Any = None) -> int | None:
    """Return after how many ids `StopStrings` ends the completion."""
    stops = StopStrings(strings, (tokenizer or tiny.tokenizer()).decode)
    return next((count for count in range(1, len(ids) + 1) if stops.end(ids[:count])), None)


@settings(deadline=None)
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=3), st.lists(TEXTS, max_size=6))
@example(["\n```\n"], ["```python\nx\n```\n\nThis"])
@example(["\n```\n"], ["a\n``", "`", "\n", "b"])
@example(["🙂"], ["a🙂b"])
def test_a_completion_ends_with_the_first_token_that_completes_a_stop_string(
    strings: list[str], pieces: list[str]
) -> None:
    ids = [token for piece in pieces for token in tiny.tokenizer().encode(piece)]
    texts = [tiny.tokenizer().decode(ids[:count]) for count in range(1, len(ids) + 1)]
    wanted = next((n for n, text in enumerate(texts, 1) if any(one in text for one in strings)), None)
    assert first_end(strings, ids) == wanted


@pytest.mark.parametrize("strings", [(), ("`\n`",)])
def test_text_without_a_stop_string_does_not_end(strings: tuple[str, ...]) -> None:
    assert first_end(strings, tiny.tokenizer().encode("```python\nreturn 1\n```\n")) is None


def test_a_space_is_seen_although_the_tokenizer_strips_a_leading_one() -> None:
    from tokenizers import Tokenizer, decoders, models

    made = Tokenizer(
        models.BPE({"\N{LOWER ONE EIGHTH BLOCK}": 0, "x": 1, "y": 2, "\N{LOWER ONE EIGHTH BLOCK}y": 3}, [])
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    assert made.decode([0, 1, 0, 2]) == "x y"
    assert first_end(["x "], [0, 1, 1, 0, 2], made) == 4
    assert first_end([" "], [0, 1, 0, 1], made) == 3
    assert made.decode([1, 3]) == "x y"
    assert first_end(["x "], [1, 1, 3], made) == 3


@pytest.mark.parametrize(
    ("text", "string", "ends"), [("é\n", "\n", 3), ("🙂😀x", "😀", 8), ("🙂\na", "\n", 5), ("é", "🙂", None)]
)
def test_a_stop_string_is_seen_although_characters_have_a_token_for_each_byte(
    text: str, string: str, ends: int | None
) -> None:
    from tokenizers import Tokenizer, decoders, models

    made = Tokenizer(models.BPE({f"<0x{byte:02X}>": byte for byte in range(256)}, []))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    ids = [*text.encode()]
    assert made.decode(ids) == text
    assert first_end([string], ids, made) == ends
