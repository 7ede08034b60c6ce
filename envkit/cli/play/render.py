"""Render what a player sees: requests, observations, results and file changes, as rich renderables."""

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

_CODE_BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
_DIFF: Final = re.compile(r"^--- .*\n\+\+\+ .*\n(?:[ +@\\-].*\n?|\n)*", re.MULTILINE)
#: End of a request: an empty line, or the start of a code block.
_REQUEST_END: Final = re.compile(r"\n(?=\n|```)")
#: Last line of a table: the number of its rows, such as ``(3 rows)``, or ``...`` if there are more.
_TABLE_END: Final = re.compile(r"\(([0-9]{1,6}) \w+\)|\.\.\.")
_SEPARATOR: Final = " | "
#: A table with more columns is shown as plain text, because a terminal has no room for it.
_MAX_COLUMNS: Final = 12
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
#: Control characters, which a terminal would execute instead of showing.
_CONTROL_CHARACTER: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: A line that reports an error: it begins with an exception's name, or with the message for a malformed call.
_ERROR_LINE: Final = re.compile(
    r"(?:\w*Error\b|Not done\b|No call of a tool\b|Traceback \(|\w+: .* It is \w+\().*"
)


def render_first_observation(observation: str) -> list[RenderableType]:
    """Render the first observation: its request in a panel, and the rest below."""
    observation = replace_control_characters(observation)
    end = _REQUEST_END.search(observation)
    request, rest = (observation[: end.start()], observation[end.end() :]) if end else (observation, "")
    panel = Panel(Text(request.strip("\n")), title="request", title_align="left", border_style="cyan")
    return [panel, *render_observation(rest)]


def render_observation(observation: str) -> list[RenderableType]:
    """Render an observation: code and diffs in colour, tables aligned, errors in red."""
    parts: list[RenderableType] = []
    for text, block in _split(_CODE_BLOCK, replace_control_characters(observation)):
        if block is not None:
            language, code = block[1] or "text", block[2]
            parts.append(_code(code, language))
            continue
        for plain, diff in _split(_DIFF, text):
            parts += _plain_text(plain) if diff is None else [_code(diff[0], "diff")]
    return parts


def render_result(
    reward: float, info: Mapping[str, Any], turns: int, unrewarded: Collection[str]
) -> list[RenderableType]:
    """Render the result of an episode: the verdict, and the score and evidence of each check.

    Args:
        reward: sum of the episode's rewards.
        info: ``info`` of the last step.
        turns: number of turns taken.
        unrewarded: names of checks that do not count in the reward.
    """
    style = "bold green" if info["solved"] else "bold red"
    plural = "" if turns == 1 else "s"
    summary = f"{info['verdict']}, reward {reward:g}, after {turns} turn{plural}"
    parts: list[RenderableType] = [Text(summary, style=style)]
    for check, score in info["scores"].items():
        if check in unrewarded:
            parts.append(Text(f"{check}: {score:g} (only measured)", style="dim"))
        else:
            parts.append(Text(f"{check}: {score:g}", style="green" if score == 1 else "red"))
        for note in (info["evidence"].get(check), info.get("weaknesses", {}).get(check)):
            if note:
                text = Text(replace_control_characters(note), overflow="fold")
                parts.append(Padding(text, (0, 0, 0, 2)))
    return parts


def render_changes(before: Mapping[str, str | bytes], after: Mapping[str, bytes]) -> list[RenderableType]:
    """Render a diff of each changed file; of a binary one, its sizes.

    Args:
        before: path -> text or bytes at the start.
        after: path -> bytes at the end, empty if the file was deleted; a missing path is skipped.
    """
    parts: list[RenderableType] = []
    for path, content in before.items():
        old = content if isinstance(content, bytes) else content.encode()
        if path not in after or old == after[path]:
            continue
        try:
            lines = old.decode().splitlines(), after[path].decode().splitlines()
        except UnicodeDecodeError:
            parts.append(Text(f"{path}: binary, {len(old):,} bytes, now {len(after[path]):,} bytes"))
            continue
        if diff := "\n".join(difflib.unified_diff(*lines, path, path, lineterm="")):
            parts.append(_code(replace_control_characters(diff), "diff"))
    return [Text("What was changed:", style="bold"), *parts] if parts else []


def replace_control_characters(text: str) -> str:
    """Replace control characters, because the text may come from an untrusted source."""
    return _CONTROL_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", text)


def _split(pattern: re.Pattern[str], text: str) -> Iterator[tuple[str, re.Match[str] | None]]:
    """Split a text at a pattern: yields ``("", match)`` for each match, ``(text, None)`` between them."""
    start = 0
    for match in pattern.finditer(text):
        yield text[start : match.start()], None
        yield "", match
        start = match.end()
    yield text[start:], None


def _code(text: str, language: str) -> Syntax:
    return Syntax(text.rstrip("\n"), language, background_color="default", word_wrap=True)


def _plain_text(text: str) -> list[RenderableType]:
    """Render text without code, with its tables aligned."""
    text = text.strip("\n")
    if not text:
        return []
    parts: list[RenderableType] = []
    pending: list[str] = []  # lines that are not rendered yet
    for line in text.split("\n"):
        end = _TABLE_END.fullmatch(line)
        rows = _table_rows(pending, end) if end else []
        if rows and len(rows[0]) <= _MAX_COLUMNS:
            parts += _lines(pending[: -len(rows)])
            parts += [_table(rows), Text(line, style="dim")]
            pending = []
        else:
            pending.append(line)
    return parts + _lines(pending)


def _table_rows(lines: list[str], end: re.Match[str]) -> list[list[str]]:
    """Split the lines above a table's last line into rows of cells, header first; empty if it is no table."""
    if end[1] is not None:  # it names the number of rows
        count = int(end[1]) + 1
        rows = [line.split(_SEPARATOR) for line in lines[-count:]]
        is_table = len(rows) == count and all(len(row) == len(rows[0]) for row in rows)
        return rows if is_table else []
    rows = list[list[str]]()
    for line in reversed(lines):
        row = line.split(_SEPARATOR)
        if len(row) < 2 or (rows and len(row) != len(rows[0])):
            break
        rows.insert(0, row)
    return rows if len(rows) > 1 else []


def _table(rows: list[list[str]]) -> Table:
    header, *body = rows
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column, name in enumerate(header):
        cells = [row[column] for row in body]
        is_number = bool(cells) and all(_NUMBER.fullmatch(cell) or cell == "NULL" for cell in cells)
        table.add_column(Text(name), justify="right" if is_number else "left", overflow="fold")
    for row in body:
        table.add_row(*(Text(cell, style="dim" if cell == "NULL" else "") for cell in row))
    return table


def _lines(lines: list[str]) -> list[RenderableType]:
    """Render lines without code and tables; a first line that reports an error is red."""
    if not lines:
        return []
    text = "\n".join(lines)
    first, newline, rest = text.partition("\n")
    if not _ERROR_LINE.fullmatch(first):
        return [Text(text)]
    return [Text.assemble((first, "red"), newline, rest)]
