"""Render an environment's texts for a player: code, diffs, tables and errors as rich renderables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
_DIFF: Final = re.compile(r"^--- .*\n\+\+\+ .*\n(?:[ +@\\-].*\n?|\n)*", re.MULTILINE)
#: End of the first part of a text: an empty line, or the start of a code block.
_FIRST: Final = re.compile(r"\n(?=\n|```)")
#: Last line of a table: the number of its rows, or ``...`` if there are more.
_FOOT: Final = re.compile(r"\(([0-9]{1,6}) \w+\)|\.\.\.")
_BAR: Final = " | "
#: A table with more columns is shown as plain text, because a terminal has no room for it.
_MOST_COLUMNS: Final = 12
#: Control characters, which a terminal would execute instead of showing.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
#: A line that reports an error: it begins with an exception's name, or with the message for a malformed call.
_WRONG: Final = re.compile(
    r"(?:\w*Error\b|Not done\b|No call of a tool\b|Traceback \(|\w+: .* It is \w+\().*"
)


def opening(observation: str) -> list[RenderableType]:
    """Render the first observation, with the request in a panel above the rest."""
    observation = harmless(observation)
    end = _FIRST.search(observation)
    asked, rest = (observation[: end.start()], observation[end.end() :]) if end else (observation, "")
    panel = Panel(Text(asked.strip("\n")), title="request", title_align="left", border_style="cyan")
    return [panel, *pretty(rest)]


def pretty(observation: str) -> list[RenderableType]:
    """Render an observation: code and diffs in colour, tables aligned, errors in red."""
    pieces: list[RenderableType] = []
    for text, fence in _split(_FENCE, harmless(observation)):
        if fence is not None:
            pieces.append(_code(fence[2], fence[1] or "text"))
            continue
        for plain, diff in _split(_DIFF, text):
            pieces += [_code(diff[0], "diff")] if diff is not None else _tabled(plain)
    return pieces


def harmless(text: str) -> str:
    """Replace control characters, because the text may come from an untrusted source."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def ending(
    reward: float, info: Mapping[str, Any], turns: int, measured: Collection[str]
) -> list[RenderableType]:
    """Render the result of an episode: the verdict, and the score and evidence of each check.

    Args:
        reward: reward of the last step.
        info: ``info`` of the last step.
        turns: number of turns taken.
        measured: names of checks that do not count in the reward.
    """
    style = "bold green" if info["solved"] else "bold red"
    said = f"{info['verdict']}, reward {reward:g}, after {turns} turn{'' if turns == 1 else 's'}"
    pieces: list[RenderableType] = [Text(said, style=style)]
    for name, score in info["scores"].items():
        if name in measured:
            pieces.append(Text(f"{name}: {score:g} (only measured)", style="dim"))
        else:
            pieces.append(Text(f"{name}: {score:g}", style="green" if score == 1 else "red"))
        said = [info["evidence"].get(name, ""), info.get("weaknesses", {}).get(name, "")]
        pieces += [Padding(Text(harmless(each), overflow="fold"), (0, 0, 0, 2)) for each in said if each]
    return pieces


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[RenderableType]:
    """Render a diff of each file that was changed.

    Args:
        before: path -> text at the start.
        after: path -> text at the end, empty if the file was deleted; a missing path is skipped.
    """
    pieces: list[RenderableType] = []
    for path, old in before.items():
        if path not in after:
            continue
        lines = old.splitlines(), after[path].splitlines()
        if diff := "\n".join(difflib.unified_diff(*lines, path, path, lineterm="")):
            pieces.append(_code(harmless(diff), "diff"))
    return [Text("What was changed:", style="bold"), *pieces] if pieces else []


def _split(pattern: re.Pattern[str], text: str) -> Iterator[tuple[str, re.Match[str] | None]]:
    """Split a text at a pattern: yields ``("", match)`` for each match, ``(text, None)`` between them."""
    at = 0
    for match in pattern.finditer(text):
        yield text[at : match.start()], None
        yield "", match
        at = match.end()
    yield text[at:], None


def _code(text: str, language: str) -> Syntax:
    return Syntax(text.rstrip("\n"), language, background_color="default", word_wrap=True)


def _tabled(text: str) -> list[RenderableType]:
    """Render text without code, with its tables aligned."""
    if not text.strip("\n"):
        return []
    pieces: list[RenderableType] = []
    waiting: list[str] = []
    for line in text.strip("\n").split("\n"):
        foot = _FOOT.fullmatch(line)
        rows = _rows_above(waiting, foot) if foot else []
        if rows and len(rows[0]) <= _MOST_COLUMNS:
            pieces += _text(waiting[: -len(rows)])
            pieces += [_table(rows), Text(line, style="dim")]
            waiting = []
        else:
            waiting.append(line)
    return pieces + _text(waiting)


def _rows_above(lines: list[str], foot: re.Match[str]) -> list[list[str]]:
    """Return the rows of cells above a table's last line, header first; empty if they form no table."""
    if foot[1] is not None:
        count = int(foot[1]) + 1
        rows = [line.split(_BAR) for line in lines[-count:]]
        is_table = len(rows) == count and all(len(row) == len(rows[0]) for row in rows)
        return rows if is_table else []
    rows = list[list[str]]()
    for line in reversed(lines):
        row = line.split(_BAR)
        if len(row) < 2 or (rows and len(row) != len(rows[0])):
            break
        rows.insert(0, row)
    return rows if len(rows) > 1 else []


def _table(rows: list[list[str]]) -> Table:
    head, *body = rows
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column, name in enumerate(head):
        cells = [row[column] for row in body]
        is_number = bool(cells) and all(_NUMBER.fullmatch(cell) or cell == "NULL" for cell in cells)
        table.add_column(Text(name), justify="right" if is_number else "left", overflow="fold")
    for row in body:
        table.add_row(*(Text(cell, style="dim" if cell == "NULL" else "") for cell in row))
    return table


def _text(lines: list[str]) -> list[RenderableType]:
    if not lines:
        return []
    text = "\n".join(lines)
    first, newline, rest = text.partition("\n")
    if not _WRONG.fullmatch(first):
        return [Text(text)]
    return [Text.assemble((first, "red"), newline, rest)]
