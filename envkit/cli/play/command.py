"""The command that lets a person play an episode."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from envkit.cli.options import EnvArgument, SandboxName, require_at_least
from envkit.cli.output import out
from envkit.cli.play.input import COMMANDS, input_reader, read_action
from envkit.errors import ContractError, EnvkitError
from envkit.runs.common import DEFAULT_ENVIRONMENT, load_tasks
from envkit.runtime.plugins import place_of
from envkit.types import total_reward

if TYPE_CHECKING:
    from rich.console import RenderableType

    from envkit.env import Env


def play(
    env: EnvArgument = DEFAULT_ENVIRONMENT,
    task: Annotated[
        str | None, typer.Option(metavar="ID", help="Task to play. Default: a random one.")
    ] = None,
    tasks: Annotated[
        Path | None,
        typer.Option("--tasks", metavar="FILE", help="Task file. Default: the environment's starters."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="SEED", help="Seed of the task and its hidden inputs.")
    ] = None,
    max_turns: Annotated[
        int | None,
        typer.Option(metavar="N", help="Actions per episode, at most. Default: the environment's own."),
    ] = None,
    sandbox: SandboxName = "auto",
) -> None:
    """Play one episode yourself.

    Each line is one action. A line that opens a block (``` or <<<<<<< SEARCH) begins a longer action, which
    ends with an empty line after the block. `help` or `?` prints the actions again, `quit` or Ctrl-D gives
    up; neither uses up a turn.
    """
    from rich.panel import Panel
    from rich.rule import Rule
    from rich.text import Text

    from envkit.cli.play.capture import CapturingBackend
    from envkit.cli.play.render import (
        render_changes,
        render_first_observation,
        render_observation,
        render_result,
    )
    from envkit.env import registry
    from envkit.runtime.display import Silent
    from envkit.sandbox.choice import sandbox_backend

    require_at_least(0, seed=seed or 0)
    kind = registry.environment(env)
    backend = CapturingBackend(kind.equip(sandbox_backend(sandbox, kind.image)))
    playable = load_tasks(kind, tasks, "starter", backend, Silent())
    game = kind(tasks=playable, sandbox=backend, max_turns=max_turns)
    backend.capturing = True
    try:
        with _faults_told(env):
            observation, info = game.reset(seed=seed, options={"task": task} if task else None)
        backend.paths = game.task.files
        _print([Panel.fit(Text(f"{env}: {info['task']}", style="bold"))])
        _print([Text("Each line is one action; a block ends with an empty line; help; quit.", style="dim")])
        _print(render_first_observation(observation))
        first, ended = observation, False
        rewards: list[float] = []
        while not ended:
            _print([_turn_counter(game, len(rewards))])
            action = _read_action(game, first)
            if action is None:
                _print([Text("given up", style="bold")])
                return
            with _faults_told(env):
                observation, reward, terminated, truncated, info = game.step(action)
            rewards.append(reward)
            ended = terminated or truncated
            _print(render_observation(observation))
            if reward and not ended:
                _print([Text(f"reward {reward:g}", style="dim")])
        unrewarded = [check.name for check in game.checks if not (check.weight or check.gate)]
        _print([Rule(style="dim")])
        _print(render_result(total_reward(rewards), info, len(rewards), unrewarded))
        _print(render_changes(game.task.files, backend.files))
    finally:
        game.close()


@contextmanager
def _faults_told(env: str) -> Generator[None]:
    """Name the line of an environment's code that raises.

    Raises:
        ContractError: it has raised.
    """
    try:
        yield
    except (EnvkitError, OSError, MemoryError):
        raise
    except Exception as error:
        if not (where := place_of(error)):
            raise
        raise ContractError(f"environment {env}: {where}: {type(error).__name__}: {error}") from error


def _read_action(game: Env, first: str) -> str | None:
    """Read the player's next action; ``None`` when they give up.

    Args:
        game: the running environment.
        first: its first observation, which explains the actions of an environment without tools.
    """
    from rich.text import Text

    from envkit.cli.play.render import render_observation

    read_line = input_reader()
    tools = {tool.name for tool in game.tools}
    with_text = {tool.name for tool in game.tools if tool.schema()["function"]["parameters"].get("required")}
    while (action := read_action(read_line, with_text)) is not None:
        if not sys.stdin.isatty():  # piped input is not on screen yet
            _print([Text(f"> {action}", style="dim")])
        command = None if action.strip() in tools else COMMANDS.get(action.strip())
        if command == "quit":
            return None
        if command is None:
            return action
        _print([Text(game.help)] if game.tools else render_observation(first))
    return None


def _turn_counter(game: Env, turns: int) -> RenderableType:
    from rich.rule import Rule

    remaining = f"{game.turns_left} left" if game.turns_left > 1 else "the last"
    return Rule(f"turn {turns + 1} of {game.max_turns}, {remaining}", align="left", style="dim")


def _print(pieces: Sequence[RenderableType]) -> None:
    for piece in pieces:
        out.print(piece)
