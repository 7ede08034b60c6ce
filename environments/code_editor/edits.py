"""Applying edits to text: find the lines, keep the indentation, or say why not. Pure functions."""

from __future__ import annotations

from envkit.environments.code_editor.actions import Replace, Rewrite
from envkit.environments.code_editor.syntax import Definition, definitions, find, syntax_problem


class EditError(Exception):
    """The edit cannot be applied; the message is an observation that says how to mend it."""


def apply_replace(source: str, edit: Replace, focus: str | None = None) -> str:
    """Replace the one place where ``edit.old`` stands.

    Lines are compared exactly first, then without their indentation; in the second case the new
    lines are shifted to where the old ones stand. Places inside the function ``focus`` win over
    places elsewhere.

    Raises:
        EditError: the lines stand nowhere, or in several places.
    """
    lines = source.split("\n")
    for loose in (False, True):
        places = _places(lines, edit.old, loose)
        inside = [place for place in places if _within(source, focus, place + 1)] or places
        if len(inside) > 1:
            where = ", ".join(str(place + 1) for place in inside[:5])
            raise EditError(f"Those lines stand at lines {where}; add a line of context to say which are meant.")
        if inside:
            at, count = inside[0], len(edit.old)
            new = _shifted(edit, lines[at : at + count]) if loose else list(edit.new)
            return "\n".join([*lines[:at], *new, *lines[at + count :]])
    nearest = _nearest(lines, edit.old)
    hint = f" The nearest line is: {nearest.strip()}" if nearest else ""
    raise EditError(f"The lines to replace do not stand in the file.{hint}")


def apply_rewrite(source: str, edit: Rewrite) -> str:
    """Put each function or class of ``edit.source`` in the place of the one with its name.

    Raises:
        EditError: no definition in the block, none of that name in the file, or several.
    """
    offered = [item for item in definitions(edit.source) if item.depth == 0]
    if not offered:
        raise EditError("The python block defines no function; write the whole function, with its def line.")
    problem = syntax_problem(edit.source)
    if problem is not None:
        raise EditError(
            f"The python block has a syntax error at line {problem.line}, column {problem.column}: "
            f"{problem.message}."
        )
    block = edit.source.split("\n")
    for item in offered:
        targets = find(source, item.name)
        if len(targets) != 1:
            known = ", ".join(other.name for other in definitions(source)) or "none"
            found = "is not in the file" if not targets else f"stands {len(targets)} times"
            raise EditError(f"{item.name} {found}; the file defines: {known}.")
        source = _put(source, targets[0], block[item.first_line - 1 : item.last_line])
    return source


def _put(source: str, target: Definition, new: list[str]) -> str:
    lines = source.split("\n")
    margin = _margin(lines[target.first_line - 1])
    shifted = [margin + line if line.strip() else line for line in new]
    return "\n".join([*lines[: target.first_line - 1], *shifted, *lines[target.last_line :]])


def _places(lines: list[str], old: tuple[str, ...], loose: bool) -> list[int]:
    def same(one: str, other: str) -> bool:
        return one.strip() == other.strip() if loose else one.rstrip() == other.rstrip()

    count = len(old)
    return [
        start
        for start in range(len(lines) - count + 1)
        if all(same(lines[start + i], old[i]) for i in range(count))
    ]


def _within(source: str, focus: str | None, line: int) -> bool:
    return focus is not None and any(d.first_line <= line <= d.last_line for d in find(source, focus))


def _margin(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _shifted(edit: Replace, present: list[str]) -> list[str]:
    """The new lines, moved by the difference between how the old ones were said and how they stand."""
    said = next(line for line in edit.old if line.strip())
    stands = next(line for line in present if line.strip())
    have, want = _margin(said), _margin(stands)
    shifted: list[str] = []
    for line in edit.new:
        body = line.removeprefix(have) if line.startswith(have) else line.lstrip()
        shifted.append(want + body if line.strip() else line)
    return shifted


def _nearest(lines: list[str], old: tuple[str, ...]) -> str | None:
    import difflib

    wanted = next((line for line in old if line.strip()), "")
    close = difflib.get_close_matches(wanted, lines, n=1, cutoff=0.6)
    return close[0] if close else None
