"""What a player types: lines that become one action, or a word to the game itself."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from typing import Final

_OPENS: Final = re.compile(r"[ \t]*```|<{5,9} ?SEARCH")
_CLOSES: Final = re.compile(r"[ \t]*```[ \t]*$|>{5,9} ?REPLACE")
#: Words that no environment sees, unless it has a tool of that name: what is typed -> what it asks for.
WORDS: Final = {"help": "help", "?": "help", "quit": "quit", "exit": "quit"}

#: Gives the next line, or ``None`` at end of input; told whether the action has begun.
Ask = Callable[[bool], str | None]


def asker() -> Ask:
    """Asks a person for lines, with a prompt where there is a person."""
    is_person = sys.stdin.isatty()
    if is_person:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]  (arrow keys, and lines of before)

    def ask(more: bool) -> str | None:
        try:
            return input(("  " if more else "> ") if is_person else "")
        except EOFError:
            return None

    return ask


def read_action(ask: Ask) -> str | None:
    """One action, without the empty line that ends a block; ``None`` at end of input."""
    lines: list[str] = []
    open_block = False
    while True:
        line = ask(bool(lines))
        if line is None:
            return "\n".join(lines) or None
        if not open_block and not line.strip():
            if lines:
                return "\n".join(lines)
            continue
        opens = not open_block and _OPENS.match(line)
        open_block = bool(opens) or (open_block and not _CLOSES.match(line))
        if not lines and not opens:
            return line
        lines.append(line)
