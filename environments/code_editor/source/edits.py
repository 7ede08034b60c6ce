"""Apply edits to text: find the lines and keep the indentation, or say why not. Pure functions."""

from __future__ import annotations

import bisect
import difflib
import heapq
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

from envkit.environments.code_editor.actions import Replace, Rewrite
from envkit.environments.code_editor.source import docstrings
from envkit.environments.code_editor.source.dependencies import with_dependencies
from envkit.environments.code_editor.source.syntax import definitions, find, syntax_problem

#: Most bytes that are compiled to find the end of a definition in a broken file.
_MAX_TRIED_BYTES: Final = 1_000_000
#: Longest indentation of a definition that is replaced.
_MAX_MARGIN: Final = 200
#: Deepest nesting of definitions that one block replaces.
_MAX_NESTED: Final = 8
#: The nearest line is looked for among lines cut to this length, and the best of them are compared exactly.
_COMPARED_CHARS, _COMPARED_LINES = 120, 5
_LIKE: Final = 0.6
_SHOWN_CHARS: Final = 200
#: Most pairs of lines that are compared to show a change in small steps.
_MAX_COMPARED_PAIRS: Final = 40_000
_STARTS: Final = re.compile(r"\s*(?:async\s+)?(?:def|class)\s+(\w+)")


class EditError(Exception):
    """The edit cannot be applied; the message is an observation that says how to correct it."""


class AmbiguousEdit(EditError):
    """The lines to replace stand at several places."""


def apply_replace(source: str, edit: Replace, focus: str | None = None) -> str:
    """Replace the one occurrence of ``edit.old``.

    Lines are compared exactly first, then without indentation. In the second case the new lines are
    re-indented like the matched ones. Occurrences inside the function ``focus`` take precedence.

    Raises:
        EditError: the lines occur nowhere.
        AmbiguousEdit: they occur several times.
    """
    lines, count = source.split("\n"), len(edit.old)
    places = _places([line.rstrip() for line in lines], [line.rstrip() for line in edit.old])
    exact = bool(places)
    if not exact:
        places = _places([line.strip() for line in lines], [line.strip() for line in edit.old])
    # A broken text is not parsed: it may hold an earlier edit, and take a very long time.
    if len(places) > 1 and focus is not None and syntax_problem(source) is None:
        inside = {at for item in find(source, focus) for at in range(item.first_line - 1, item.last_line)}
        places = [place for place in places if place in inside] or places
    if not places:
        nearest = _nearest(lines, edit.old)
        hint = f" The nearest line is: {nearest.strip()[:_SHOWN_CHARS]}" if nearest else ""
        raise EditError(f"The lines to replace do not stand in the file.{hint}")
    if len(places) > 1:
        where = ", ".join(str(place + 1) for place in places[:5])
        raise AmbiguousEdit(
            f"Those lines stand at lines {where}; add a line of context to say which are meant."
        )
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
    lines = block.split("\n")
    # If a name is defined several times, the last definition counts, as in Python.
    offered = {
        item.name: textwrap.dedent("\n".join(lines[item.first_line - 1 : item.last_line]))
        for item in definitions(block)
        if item.depth == 0
    }
    if not offered:
        raise EditError("The python block defines no function; write the whole function, with its def line.")
    replace = _replace if syntax_problem(source) is None else _replace_in_broken
    source, replaced = replace(source, offered)
    if not replaced:
        raise EditError(f"{', '.join(offered)} is not in {_file(source)}.")
    return with_dependencies(source, block, replaced)


def _file(source: str) -> str:
    return f"the file, which defines: {', '.join(item.name for item in definitions(source)) or 'nothing'}"


def _replace(source: str, offered: Mapping[str, str], levels: int | None = None) -> tuple[str, list[str]]:
    """Replace all definitions that the file has; returns the new text and their names.

    The file is parsed once, or once more for each level of definitions that lie in others of the block.

    Args:
        source: the file.
        offered: name -> new text.
        levels: levels to replace; inner definitions are left out. ``None`` replaces all.

    Raises:
        EditError: the file defines a name several times, or the definitions lie in each other too deeply.
    """
    replaced: list[str] = []
    waiting = offered
    for level in range(_MAX_NESTED):
        if not waiting or level == levels:
            return source, replaced
        placed: list[tuple[int, int, str, str]] = []  # first and last line, sorted; the old and the new text
        inner: dict[str, str] = {}
        lines = source.split("\n")
        for name, new in waiting.items():
            targets = find(source, name)
            if len(targets) > 1:
                raise EditError(f"{name} stands {len(targets)} times in {_file(source)}.")
            if not targets:
                continue
            first, last = targets[0].first_line - 1, targets[0].last_line
            at = bisect.bisect(placed, (first,))
            overlaps = (at and placed[at - 1][1] > first) or (at < len(placed) and placed[at][0] < last)
            if overlaps:
                inner[name] = new
            else:
                placed.insert(at, (first, last, "\n".join(lines[first:last]), new))
                replaced.append(name)
        parts: list[str] = []
        end = 0
        for first, last, old, new in placed:
            margin = _margin(lines[first])
            if len(margin) > _MAX_MARGIN:  # it would be put before every line of a long block
                raise EditError(f"Line {first + 1} is indented by more than {_MAX_MARGIN} characters.")
            parts += [*lines[end:first], textwrap.indent(docstrings.keep(old, new), margin)]
            end = last
        source, waiting = "\n".join([*parts, *lines[end:]]), inner
    if waiting:
        raise EditError("The definitions lie in each other too deeply; give the outermost one alone.")
    return source, replaced


def _replace_in_broken(source: str, offered: Mapping[str, str]) -> tuple[str, list[str]]:
    """Replace definitions of a file with a syntax error; returns the new text and their names.

    Only the file itself is parsed, never a broken text that holds the agent's, which may take very long.

    Raises:
        EditError: as `_replace` does.
    """
    left = _MAX_TRIED_BYTES
    for name, new in offered.items():
        repaired, left = _repaired(source, name, new, left)
        if repaired:
            changed, done = _replace(repaired, {other: offered[other] for other in offered if other != name})
            return changed, [name, *done]
    changed, done = _replace(source, offered, levels=1)
    if len(done) > 1 and syntax_problem(changed) is not None:
        # The end of one of them was guessed wrong.
        for name in done:
            others = {other: offered[other] for other in done if other != name}
            repaired, left = _repaired(_replace(source, others, levels=1)[0], name, offered[name], left)
            if repaired:
                return repaired, done
    return changed, done


def _repaired(source: str, name: str, new: str, max_bytes: int) -> tuple[str, int]:
    """Replace a definition so that a broken file becomes valid Python.

    Args:
        source: the file.
        name, new: the definition's name and its new text.
        max_bytes: most bytes to compile.

    Returns:
        The new file, empty if that is impossible; and what is left of ``max_bytes``.
    """
    lines = source.split("\n")
    for first, line in enumerate(lines):
        found = _STARTS.match(line)
        if not found or found[1] != name:
            continue
        margin = _margin(line)
        begin, indented = "\n".join([*lines[:first], ""]), textwrap.indent(new, margin)
        # A definition ends before a line with the same or less indentation, or at the end of the file.
        deeper = (f"{margin} ", f"{margin}\t")
        for last in range(first + 1, len(lines) + 1):
            if last < len(lines) and (not lines[last].strip() or lines[last].startswith(deeper)):
                continue
            tried = begin + "\n".join([indented, *lines[last:]])
            max_bytes -= len(tried)
            if max_bytes < 0:
                return "", 0
            if syntax_problem(tried) is None:
                return tried, max_bytes
    return "", max_bytes


def show_change(path: str, before: str, after: str) -> str:
    r"""Return a unified diff with one line of context. Takes bounded time: a long change is one hunk.

    >>> print(show_change("f.py", "a\nb\nc\nd", "a\nb\nC\nd"))
    --- f.py
    +++ f.py
    @@ -2,3 +2,3 @@
     b
    -c
    +C
     d
    """
    old, new = before.split("\n"), after.split("\n")
    shortest = min(len(old), len(new))
    start = next((at for at in range(shortest) if old[at] != new[at]), shortest)
    most = shortest - start
    end = next((at for at in range(most) if old[-1 - at] != new[-1 - at]), most)
    # One line of context on both sides, as `n` says below.
    skipped, cut = max(start - 1, 0), max(end - 1, 0)
    lead, trail = start - skipped, end - cut
    old, new = old[skipped : len(old) - cut], new[skipped : len(new) - cut]
    if len(old) * len(new) <= _MAX_COMPARED_PAIRS:
        rows = [*difflib.unified_diff(old, new, path, path, lineterm="", n=1)]
        return "\n".join(_HUNK.sub(lambda found: _moved(found, skipped), row) for row in rows)
    header = f"@@ -{skipped + 1},{len(old)} +{skipped + 1},{len(new)} @@"
    first, last = [f" {line}" for line in old[:lead]], [f" {line}" for line in old[len(old) - trail :]]
    removed = [f"-{line}" for line in old[lead : len(old) - trail]]
    added = [f"+{line}" for line in new[lead : len(new) - trail]]
    return "\n".join([f"--- {path}", f"+++ {path}", header, *first, *removed, *added, *last])


#: The first lines of a hunk, in the old and in the new text.
_HUNK: Final = re.compile(r"^@@ -(\d+)(\S*) \+(\d+)(\S*) @@$")


def _moved(hunk: re.Match[str], lines: int) -> str:
    return f"@@ -{int(hunk[1]) + lines}{hunk[2]} +{int(hunk[3]) + lines}{hunk[4]} @@"


def _places(lines: Sequence[str], old: Sequence[str]) -> list[int]:
    """Every place at which the lines ``old`` stand, in linear time (Knuth, Morris and Pratt, 1977)."""
    borders = [0] * len(old)  # of each prefix: length of its longest proper prefix that also ends it
    same = 0
    for at in range(1, len(old)):
        while same and old[at] != old[same]:
            same = borders[same - 1]
        same += old[at] == old[same]
        borders[at] = same
    places: list[int] = []
    same = 0
    for at, line in enumerate(lines):
        while same and (same == len(old) or line != old[same]):
            same = borders[same - 1]
        same += line == old[same]
        if same == len(old):
            places.append(at + 1 - same)
    return places


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
    """The line that is most like the first one that is looked for; ``None`` if none is alike."""
    matcher = difflib.SequenceMatcher()
    matcher.set_seq2(next(line for line in old if line.strip())[:_COMPARED_CHARS])

    def ratio(line: str, exact: bool) -> float:
        matcher.set_seq1(line[:_COMPARED_CHARS])
        return matcher.ratio() if exact else matcher.quick_ratio()

    # The exact comparison takes quadratic time, so it is made for the few lines with the same characters.
    likely = heapq.nlargest(_COMPARED_LINES, dict.fromkeys(lines), key=lambda line: ratio(line, False))
    best = max(likely, key=lambda line: ratio(line, True), default=None)
    return best if best is not None and ratio(best, True) >= _LIKE else None
