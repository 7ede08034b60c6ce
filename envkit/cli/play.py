"""Play an episode by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.panel import Panel
from rich.syntax import Syntax

from envkit.cli.ui import out


def play(
    env: Annotated[str, typer.Argument(help="Environment name from `envkit list`.")] = "code-editor",
    task: Annotated[str | None, typer.Option(help="Task id; default: a random one.")] = None,
    tasks: Annotated[Path | None, typer.Option("--tasks", help="Task file; default: starter tasks.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of task and hidden inputs.")] = None,
    max_turns: Annotated[int, typer.Option(min=1, help="Actions until the end.")] = 10,
) -> None:
    """Play one episode yourself. An action is ended by an empty line; Ctrl-D gives up."""
    from envkit import registry

    options: dict[str, Any] = {"max_turns": max_turns, "render_mode": "ansi"}
    if tasks is not None:
        options["tasks"] = tasks
    game = registry.load("environment", env)(**options)
    try:
        observation, info = game.reset(seed=seed, options={"task": task} if task else None)
        out.print(Panel.fit(f"{env}: {info['task']}", style="bold"))
        reward, ended = 0.0, False
        while not ended:
            _show(observation)
            action = _read()
            if action is None:
                out.print("given up")
                return
            observation, reward, terminated, truncated, info = game.step(action)
            ended = terminated or truncated
        _show(observation)
        style = "bold green" if info["solved"] else "bold red"
        out.print(f"[{style}]{info['verdict']}[/], reward {reward:g}")
        for name, evidence in info["evidence"].items():
            out.print(f"{name}: {evidence}", markup=False)
    finally:
        game.close()


def _show(observation: str) -> None:
    """The observation with its code and diffs in colour."""
    fenced = observation.split("```")
    for index, part in enumerate(fenced):
        if index % 2:
            language, _, body = part.partition("\n")
            out.print(Syntax(body.rstrip("\n"), language or "text", background_color="default"))
        elif part.strip():
            for line in part.strip("\n").splitlines():
                colour = {"+": "green", "-": "red"}.get(line[:1], "default")
                is_change = line[:1] in "+-" and line[1:2] not in ("", " ")
                out.print(line, markup=False, style=colour if is_change else "default")


def _read() -> str | None:
    """Lines up to an empty one; an open fence keeps its empty lines. ``None`` at end of input."""
    lines: list[str] = []
    while True:
        try:
            line = input("> " if not lines else "  ")
        except EOFError:
            return "\n".join(lines) if lines else None
        fence_open = sum(text.strip().startswith("```") for text in lines) % 2 == 1
        if not line and lines and not fence_open:
            return "\n".join(lines)
        if line or fence_open:
            lines.append(line)
