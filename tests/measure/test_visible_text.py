"""Escapes for characters that cannot be seen."""

from __future__ import annotations

import pytest

from envkit.measure.visible_text import visible


@pytest.mark.parametrize(
    "code",
    [
        *(0xAD, 0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180F, 0x200B, 0x202E, 0x2060, 0x2800),
        *(0x3164, 0xFE00, 0xFE0F, 0xFEFF, 0xFFA0, 0x1D173, 0x1D17A, 0xE0001, 0xE007F, 0xE0100, 0xE01EF),
    ],
    ids=hex,
)
def test_characters_without_a_shape_are_escaped(code: int) -> None:
    for text in (f"a{chr(code)}b", f"a\n{chr(code)}b"):
        assert chr(code) not in visible(text)
        assert f"{code:x}b" in visible(text)


def test_what_can_be_seen_stays() -> None:
    text = "caf\u00e9\u00a0\u2026\n\t\u4e2d\ud55c \U0001f600"
    assert visible(text) == text
