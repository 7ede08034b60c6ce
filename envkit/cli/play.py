"""Play an episode by hand."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text

from envkit.cli.ui import out

_OPENS = re.compile(r"[ \t]*```|<{5,9} ?SEARCH")
_CLOSES = re.compile(r"[ \t]*```[ \t]*$|>{5,9} ?REPLACE")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
_DIFF = re.compile(r"^--- .*\n\+\+\+ .*\n(?:[ +@\\-].*\n?|\n)*", re.MULTILINE)


def play(
    env: Annotated[str, typer.Argument(help="Environment name from `envkit list`.")] = "code-editor",
    task: Annotated[str | None, typer.Option(help="Task id; default: a random one.")] = None,
    tasks: Annotated[Path | None, typer.Option("--tasks", help="Task file; default: starters.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of task and hidden inputs.")] = None,
    max_turns: Annotated[int, typer.Option(min=1, help="Actions until the end.")] = 10,
) -> None:
    """Play one episode yourself.

    A line is an action. One that opens a block (``` or <<<<<<< SEARCH) goes on until an empty line after
    the block. Ctrl-D gives up.
    """
    from envkit import registry

    game: Any = registry.make(env, tasks, max_turns=max_turns)
    try:
        observation, info = game.reset(seed=seed, options={"task": task} if task else None)
        out.print(Panel.fit(f"{env}: {info['task']}", style="bold"))
        out.print("A line is an action; a block ends with an empty line; Ctrl-D gives up.", style="dim")
        reward, ended = 0.0, False
        while not ended:
            out.print(*pretty(observation), sep="\n")
            action = read_action(_lines())
            if action is None:
                out.print("given up")
                return
            observation, reward, terminated, truncated, info = game.step(action)
            ended = terminated or truncated
        out.print(*pretty(observation), sep="\n")
        out.print(
            f"{info['verdict']}, reward {reward:g}", style="bold green" if info["solved"] else "bold red"
        )
        for name, evidence in info["evidence"].items():
            out.print(f"{name}: {evidence}", markup=False)
    finally:
        game.close()


def pretty(observation: str) -> list[Text | Syntax]:
    """The observation in pieces, code and diffs in colour."""
    pieces: list[Text | Syntax] = []
    for text, fence in _split(_FENCE, observation):
        if fence is not None:
            pieces.append(_code(fence[2], fence[1] or "text"))
            continue
        for plain, diff in _split(_DIFF, text):
            pieces += [_code(diff[0], "diff")] if diff is not None else [Text(plain.strip("\n"))]
    return [piece for piece in pieces if isinstance(piece, Syntax) or piece.plain]


def _split(pattern: re.Pattern[str], text: str) -> Iterable[tuple[str, re.Match[str] | None]]:
    """What stands between the matches, with ``None``, and the matches, in order."""
    at = 0
    for match in pattern.finditer(text):
        yield text[at : match.start()], None
        yield "", match
        at = match.end()
    yield text[at:], None


def _code(text: str, language: str) -> Syntax:
    return Syntax(text.rstrip("\n"), language, background_color="default", word_wrap=True)


def _lines() -> Callable[[bool], str | None]:
    """Asks a person for lines; ``None`` at end of input. Prompts only where there is a person."""
    prompt = sys.stdin.isatty()

    def ask(more: bool) -> str | None:
        try:
            return input(("  " if more else "> ") if prompt else "")
        except EOFError:
            return None

    return ask


def read_action(ask: Callable[[bool], str | None]) -> str | None:
    """One action; ``None`` when the person gave up.

    Args:
        ask: gives the next line, or ``None`` at end of input; told whether the action has begun.
    """
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
