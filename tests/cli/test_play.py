"""Playing by hand: what a person types becomes one action, what they see keeps its text."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.syntax import Syntax

from envkit.cli.play import pretty, read_action
from envkit.environments.code_editor.actions import HELP, parse


def typed(*lines: str) -> list[str]:
    """The actions that the lines make, up to the end of input."""
    left = list(lines)
    actions: list[str] = []
    while (action := read_action(lambda more: left.pop(0) if left else None)) is not None:
        actions.append(action)
    return actions


def test_a_line_is_an_action() -> None:
    assert typed("view", "", "outline", "submit") == ["view", "outline", "submit"]


@pytest.mark.parametrize(
    "block",
    [
        ("```python", "def f():", "", "    return 1", "```"),
        ("<<<<<<< SEARCH", "a", "", "=======", "b", ">>>>>>> REPLACE"),
    ],
)
def test_a_block_keeps_its_empty_lines_and_may_carry_a_command(block: tuple[str, ...]) -> None:
    assert typed(*block, "run", "", "submit") == ["\n".join([*block, "run"]), "submit"]
    assert len(parse("\n".join([*block, "run"]))) == 2


def test_what_was_begun_at_end_of_input_is_sent() -> None:
    assert typed("```python", "def f(): pass") == ["```python\ndef f(): pass"]


def shown(observation: str) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(*pretty(observation), sep="\n")
    return capture.get()


def test_code_and_diffs_are_coloured_and_help_stays_whole() -> None:
    diff = "--- solution.py\n+++ solution.py\n@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 2"
    observation = f"Fix:\n```python\ndef f(): pass\n```\n{HELP}\nChanged:\n{diff}\n2 turn(s) left"
    kinds = [type(piece) for piece in pretty(observation)]
    assert kinds.count(Syntax) == 2
    assert [line.rstrip() for line in shown(observation).splitlines()] == [
        line for line in observation.splitlines() if not line.startswith("```")
    ]
