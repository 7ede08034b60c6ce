"""Escape invisible characters in text that models wrote."""

from __future__ import annotations

from typing import Final

#: Characters without a shape that Python takes for printable: those of Unicode's
#: Default_Ignorable_Code_Point, and the empty Braille pattern.
_BLANK: Final = frozenset(
    chr(code)
    for first, last in (
        *((0x34F, 0x34F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2800, 0x2800)),
        *((0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xE0100, 0xE01EF)),
    )
    for code in range(first, last + 1)
)


def visible(text: str) -> str:
    r"""Escape invisible characters, so that a completion cannot hide or reorder text on the screen.

    >>> print(visible("a\u202eb"), visible("\U000e0041"), visible("\u3164"), visible("caf\u00e9\n"), end="")
    a\u202eb \U000e0041 \u3164 café
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_shown(c) else _escaped(ord(c)) for c in text)


def _is_shown(c: str) -> bool:
    return c in "\n\t\u00a0" or (c.isprintable() and c not in _BLANK)


def _escaped(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
