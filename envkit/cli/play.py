"""Play an episode by hand."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from envkit.cli.action_input import WORDS, asker, read_action
from envkit.cli.capture import CapturingBackend
from envkit.cli.render import changes, ending, opening, pretty
from envkit.cli.ui import out
from envkit.env import Env


def play(
    env: Annotated[str, typer.Argument(help="Environment name from `envkit list`.")] = "code-editor",
    task: Annotated[str | None, typer.Option(help="Task id; default: a random one.")] = None,
    tasks: Annotated[Path | None, typer.Option("--tasks", help="Task file; default: starters.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of task and hidden inputs.")] = None,
    max_turns: Annotated[int, typer.Option(min=1, help="Actions until the end.")] = 10,
) -> None:
    """Play one episode yourself.

    A line is an action. One that opens a block (``` or <<<<<<< SEARCH) goes on until an empty line after
    the block. `help` or `?` shows the actions again, `quit` or Ctrl-D gives up; neither is a turn.
    """
    from envkit import registry

    backend = CapturingBackend(registry.sandbox_backend())
    game = registry.make(env, tasks, backend, max_turns=max_turns)
    backend.capturing = True
    try:
        observation, info = game.reset(seed=seed, options={"task": task} if task else None)
        backend.paths = game.task.files
        _say([Panel.fit(Text(f"{env}: {info['task']}", style="bold"))])
        _say([Text("A line is an action; a block ends with an empty line; help; quit.", style="dim")])
        _say(opening(observation))
        first, turns, ended, reward = observation, 0, False, 0.0
        while not ended:
            _say([_counter(game, turns)])
            action = _action(game, first)
            if action is None:
                _say([Text("given up", style="bold")])
                return
            observation, reward, terminated, truncated, info = game.step(action)
            turns, ended = turns + 1, terminated or truncated
            _say(pretty(observation))
        measured = [item.name for item in game.checks if not (item.weight or item.gate)]
        found = ending(reward, info, turns, measured)
        _say([Rule(style="dim"), *found, *changes(game.task.files, backend.files)])
    finally:
        game.close()


def _action(game: Env, first: str) -> str | None:
    """What the player does next; ``None`` for nothing any more.

    Args:
        game: which is asked nothing but what its actions are.
        first: its first observation, where an environment without tools tells its own language.
    """
    ask = asker()
    own = {tool.name for tool in game.tools}
    while (action := read_action(ask)) is not None:
        if not sys.stdin.isatty():  # where nobody sees what was typed
            _say([Text(f"> {action}", style="dim")])
        word = None if action.strip() in own else WORDS.get(action.strip())
        if word == "quit":
            return None
        if word is None:
            return action
        _say([Text(game.help)] if game.tools else pretty(first))
    return None


def _counter(game: Env, turns: int) -> RenderableType:
    left = f"{game.turns_left} left" if game.turns_left > 1 else "the last"
    return Rule(f"turn {turns + 1} of {game.max_turns}, {left}", align="left", style="dim")


def _say(pieces: Sequence[RenderableType]) -> None:
    for piece in pieces:
        out.print(piece)
