"""Apply edits to text: find the lines and keep the indentation, or say why not. Pure functions."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Sequence

from envkit.environments.code_editor import docstrings
from envkit.environments.code_editor.actions import Replace, Rewrite
from envkit.environments.code_editor.dependencies import with_dependencies
from envkit.environments.code_editor.syntax import Definition, definitions, find, syntax_problem


class EditError(Exception):
    """The edit cannot be applied; the message is an observation that says how to correct it."""


def apply_replace(source: str, edit: Replace, focus: str | None = None) -> str:
    """Replace the one occurrence of ``edit.old``.

    Lines are compared exactly first, then without indentation. In the second case the new lines are
    re-indented like the matched ones. Occurrences inside the function ``focus`` take precedence.

    Raises:
        EditError: the lines occur nowhere, or several times.
    """
    lines, count = source.split("\n"), len(edit.old)
    places = _places([line.rstrip() for line in lines], [line.rstrip() for line in edit.old])
    exact = bool(places)
    if not exact:
        places = _places([line.strip() for line in lines], [line.strip() for line in edit.old])
    if len(places) > 1 and focus is not None:
        spans = [range(item.first_line - 1, item.last_line) for item in find(source, focus)]
        places = [place for place in places if any(place in span for span in spans)] or places
    if not places:
        nearest = _nearest(lines, edit.old)
        hint = f" The nearest line is: {nearest.strip()}" if nearest else ""
        raise EditError(f"The lines to replace do not stand in the file.{hint}")
    if len(places) > 1:
        where = ", ".join(str(place + 1) for place in places[:5])
        raise EditError(f"Those lines stand at lines {where}; add a line of context to say which are meant.")
    at = places[0]
    new = edit.new if exact else _shifted(edit, lines[at : at + count])
    return "\n".join([*lines[:at], *new, *lines[at + count :]])


def apply_rewrite(source: str, edit: Rewrite) -> str:
    """Replace each function or class that ``edit.source`` defines.

    Imports, constants and new functions of the block that the definitions use are inserted above them. Other
    statements, such as a sample call, are dropped. A function without a docstring keeps the old one. In a
    file with a syntax error the end of a definition is unknown; the first end that makes the file valid is
    used.

    Raises:
        EditError: the block defines nothing, nothing that the file defines, or a name that the file defines
            several times.
    """
    block = textwrap.dedent(edit.source)
    problem = syntax_problem(block)
    if problem is not None:
        raise EditError(
            f"The python block has a syntax error at line {problem.line}, column {problem.column}: "
            f"{problem.message}."
        )
    offered = [item for item in definitions(block) if item.depth == 0]
    if not offered:
        raise EditError("The python block defines no function; write the whole function, with its def line.")
    broken = syntax_problem(source) is not None
    replaced: list[str] = []
    for item in offered:
        new = textwrap.dedent(item.lines(block))
        if broken and (repaired := _replace_in_broken(source, item.name, new)):
            source = repaired
        elif targets := find(source, item.name):
            if len(targets) > 1:
                raise EditError(f"{item.name} stands {len(targets)} times in {_file(source)}.")
            source = _put(source, targets[0], new)
        else:
            continue
        replaced.append(item.name)
    if not replaced:
        names = ", ".join(item.name for item in offered)
        raise EditError(f"{names} is not in {_file(source)}.")
    return with_dependencies(source, block, replaced)


def _file(source: str) -> str:
    return f"the file, which defines: {', '.join(item.name for item in definitions(source)) or 'nothing'}"


def _replace_in_broken(source: str, name: str, new: str) -> str | None:
    """Replace a definition so that the file becomes valid Python; return ``None`` if that is impossible."""
    lines = source.split("\n")
    starts = re.compile(rf"\s*(?:async\s+)?(?:def|class)\s+{re.escape(name)}\b")
    for first, line in enumerate(lines):
        if starts.match(line):
            margin = _margin(line)
            # A definition ends before a line with the same or less indentation, or at the end of the file.
            ends = [
                last
                for last in range(first + 1, len(lines))
                if lines[last].strip() and not lines[last].startswith((f"{margin} ", f"{margin}\t"))
            ]
            for last in [*ends, len(lines)]:
                tried = "\n".join([*lines[:first], textwrap.indent(new, margin), *lines[last:]])
                if syntax_problem(tried) is None:
                    return tried
    return None


def _put(source: str, target: Definition, new: str) -> str:
    lines, first = source.split("\n"), target.first_line - 1
    new = docstrings.keep(target.lines(source), new)
    return "\n".join(
        [*lines[:first], textwrap.indent(new, _margin(lines[first])), *lines[target.last_line :]]
    )


def _places(lines: Sequence[str], old: Sequence[str]) -> list[int]:
    count = len(old)
    return [at for at, line in enumerate(lines) if line == old[0] and lines[at : at + count] == old]


def _margin(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _shifted(edit: Replace, present: Sequence[str]) -> list[str]:
    """Re-indent the new lines by the difference in indentation between the old lines and the file."""
    moves = {
        _margin(old): _margin(actual) for old, actual in zip(edit.old, present, strict=True) if old.strip()
    }
    shifted: list[str] = []
    for line in edit.new:
        # A new line is shifted like the old line with the longest common indentation.
        old = max((margin for margin in moves if line.startswith(margin)), key=len, default=None)
        body = line.lstrip() if old is None else line.removeprefix(old)
        margin = next(iter(moves.values())) if old is None else moves[old]
        shifted.append(margin + body if line.strip() else line)
    return shifted


def _nearest(lines: Sequence[str], old: Sequence[str]) -> str | None:
    wanted = next(line for line in old if line.strip())
    # Lines are cut, because the comparison takes quadratic time.
    close = difflib.get_close_matches(wanted[:200], lines, n=1, cutoff=0.6)
    return close[0] if close else None
