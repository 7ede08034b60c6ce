"""Escape invisible characters in text that models wrote."""

from __future__ import annotations


def visible(text: str) -> str:
    r"""Escape invisible characters, so that a completion cannot hide or reorder text on the screen.

    >>> print(visible("a\u202eb"), visible("\U000e0041"), visible("caf\u00e9\n"), end="")
    a\u202eb \U000e0041 café
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t\u00a0" else _escaped(ord(c)) for c in text)


def _escaped(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
