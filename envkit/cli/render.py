"""What a player sees: the texts of an environment with their code, diffs, tables and errors made plain."""

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
#: Where the first part of a text ends: at an empty line, or where code begins.
_FIRST: Final = re.compile(r"\n(?=\n|```)")
#: What stands below the rows of a table: how many there are, or that there are more.
_FOOT: Final = re.compile(r"\(([0-9]{1,6}) \w+\)|\.\.\.")
_BAR: Final = " | "
#: A wider table is shown as the text it is: a terminal has no room for its columns.
_MOST_COLUMNS: Final = 12
#: What a terminal would obey instead of showing it.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
#: How a line begins that says what is wrong: an error's name, or the words for a misspelt call.
_WRONG: Final = re.compile(
    r"(?:\w*Error\b|Not done\b|No call of a tool\b|Traceback \(|\w+: .* It is \w+\().*"
)


def opening(observation: str) -> list[RenderableType]:
    """The first observation, what is asked for set apart from the rest."""
    observation = harmless(observation)
    end = _FIRST.search(observation)
    asked, rest = (observation[: end.start()], observation[end.end() :]) if end else (observation, "")
    panel = Panel(Text(asked.strip("\n")), title="request", title_align="left", border_style="cyan")
    return [panel, *pretty(rest)]


def pretty(observation: str) -> list[RenderableType]:
    """The observation in pieces: code and diffs in colour, tables aligned, errors in red."""
    pieces: list[RenderableType] = []
    for text, fence in _split(_FENCE, harmless(observation)):
        if fence is not None:
            pieces.append(_code(fence[2], fence[1] or "text"))
            continue
        for plain, diff in _split(_DIFF, text):
            pieces += [_code(diff[0], "diff")] if diff is not None else _tabled(plain)
    return pieces


def harmless(text: str) -> str:
    """The text without control characters, which may be of a stranger."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def ending(
    reward: float, info: Mapping[str, Any], turns: int, measured: Collection[str]
) -> list[RenderableType]:
    """How it went: the verdict, and what each check has found.

    Args:
        reward: of the last step.
        info: of the last step.
        turns: how many were taken.
        measured: checks that are no part of the reward.
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
    """The diff of each file that is not as it was.

    Args:
        before: path -> its text.
        after: the same, empty where it was deleted; of a path that is missing nothing is known.
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
    """What stands between the matches, with ``None``, and the matches, in order."""
    at = 0
    for match in pattern.finditer(text):
        yield text[at : match.start()], None
        yield "", match
        at = match.end()
    yield text[at:], None


def _code(text: str, language: str) -> Syntax:
    return Syntax(text.rstrip("\n"), language, background_color="default", word_wrap=True)


def _tabled(text: str) -> list[RenderableType]:
    """Plain text, and the tables in it."""
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
    """The cells of the lines above a table's foot, its head first; none if they are no table."""
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
