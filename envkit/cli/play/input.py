"""Read a player's actions from the terminal: one line, or a block of several lines."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Collection
from typing import Final

_OPENS: Final = re.compile(r"[ \t]*```|<{5,9} ?SEARCH")
_CLOSES: Final = re.compile(r"[ \t]*```[ \t]*$|>{5,9} ?REPLACE")
#: Words that the game itself understands, unless the environment has a tool of that name.
COMMANDS: Final = {"help": "help", "?": "help", "quit": "quit", "exit": "quit"}

#: Returns the next line, or ``None`` at end of input. The argument is True inside an action.
ReadLine = Callable[[bool], str | None]


def input_reader() -> ReadLine:
    """Return a function that reads lines from stdin, with a prompt if stdin is a terminal."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]  (arrow keys and history)

    def read_line(inside_action: bool) -> str | None:
        try:
            return input(("  " if inside_action else "> ") if is_terminal else "")
        except EOFError:
            return None

    return read_line


def read_action(read_line: ReadLine, tools: Collection[str] = ()) -> str | None:
    """Read one action, without the empty line that ends a block; ``None`` at end of input.

    Args:
        read_line: reads a line.
        tools: names of the tools that need an argument. One that stands alone is followed by a block, which
            is its text, or by an empty line.
    """
    lines: list[str] = []
    in_block = False
    while True:
        line = read_line(bool(lines))
        if line is None:
            return "\n".join(lines) or None
        if not in_block and not line.strip():
            if lines:
                return "\n".join(lines)
            continue
        opens = not in_block and _OPENS.match(line)
        in_block = bool(opens) or (in_block and not _CLOSES.match(line))
        if not lines and not opens and line.strip() not in tools:
            return line
        lines.append(line)
