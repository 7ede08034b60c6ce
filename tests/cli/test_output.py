"""Tables that commands print, in a narrow terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from envkit.cli import output
from envkit.measure.report.tables import Table
from envkit.runs.rich_display import RichDisplay


def test_a_table_in_a_narrow_terminal_loses_no_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(output, "out", Console(width=30, file=file))
    name = "before-after-20261201-030418/sft+rl"
    output.print_table(Table("a caption", ("[k]", name), (("1", "43.3 %"), ("2", "x" * 40))))
    lines = file.getvalue().splitlines()
    assert lines[0] == "a caption"
    assert all(len(line) <= 30 for line in lines)
    assert "[k]" in file.getvalue()
    letters = "".join(line[4:].strip() for line in lines[1:])
    assert name in letters
    assert "x" * 40 in letters


def test_lines_of_a_display_are_text_and_no_markup() -> None:
    file = io.StringIO()
    console = Console(file=file, width=200)
    with Progress(console=console, disable=True) as progress:
        display = RichDisplay(progress)
        display.say("serving x[/v2] in runs/[bold]")
        display.phase("play [dim]", 1)
        display.advance(1, "[red] 1")
    assert file.getvalue().splitlines() == [
        "serving x[/v2] in runs/[bold]",
        "play [dim]: 1 to do",
        "play [dim] 1/1: [red] 1",
    ]
