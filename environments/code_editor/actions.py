"""The editor's action language: text in, typed actions or a mend out. Pure functions.

Large models like search/replace blocks and diffs. A small one repairs best while it copies, so a
fenced ``python`` block with the whole function replaces the old one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HELP = """\
Say one of these:
- a ```diff block: the wrong lines after "-", the right lines after "+";
- a ```python block with a whole function: it replaces the function of that name;
- a search/replace block: <<<<<<< SEARCH, old lines, =======, new lines, >>>>>>> REPLACE;
- view [NAME | FIRST-LAST], outline, definition NAME, run, undo, submit.
An edit and a command may stand in one message, the command on the last line."""

#: The same, where a whole program is edited, with new functions and imports.
HELP_WHOLE = HELP.replace(
    "with a whole function: it replaces the function of that name;",
    "with the whole program: it replaces the file;",
)


@dataclass(frozen=True, slots=True)
class Replace:
    """Replace consecutive lines ``old`` by ``new``."""

    old: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Replace the function or class of the same name by ``source``."""

    source: str


@dataclass(frozen=True, slots=True)
class Command:
    """``name`` is one of the commands in `HELP`; ``argument`` is the rest of the line, stripped."""

    name: str
    argument: str = ""


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not an action; ``mend`` says how to say it right."""

    mend: str


Action = Replace | Rewrite | Command | Malformed

# Blocks are runs of whole lines, matched possessively: a hostile message costs time linear in its length.
_SEARCH = re.compile(
    r"^<{5,9} ?SEARCH.*\n((?:(?![<=>]{5}).*\n)*+)={5,9}[ \t]*\n((?:(?![<=>]{5}).*\n)*+)>{5,9} ?REPLACE.*\n",
    re.MULTILINE,
)
# The closing fence may be missing: a small model often stops, or goes on to a command, right after an edit.
_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(\w*).*\n((?:(?![ \t]*```|(?:run|undo|submit)\n\Z).*\n)*+)(?:[ \t]*```[ \t]*\n)?",
    re.MULTILINE,
)
_HEADER = re.compile(r"^(?:diff --git .*|index [0-9a-f]+\.\..*|--- .*\n\+\+\+ .*|@@.*)\n", re.MULTILINE)
#: What git says of a file whose last line does not end in a newline.
_NO_NEWLINE = re.compile(r"^\\ No newline at end of file\n", re.MULTILINE)
_COMMAND = re.compile(r"(?:(run|outline|undo|submit)|(view|definition)((?: +[\w./-]+){0,2}))")
# Characters that make text read differently from how it runs (Trojan Source, CVE-2021-42574), the
# carriage return among them, which ends a line for Python alone; and halves of characters.
_DECEPTIVE = re.compile(
    "[\0-\b\v-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def parse(text: str) -> list[Action]:
    r"""The actions that a message contains, edits before the command; never empty.

    >>> parse("```diff\n-    return a\n+    return b\n```\nrun")
    [Replace(old=('    return a',), new=('    return b',)), Command(name='run', argument='')]
    """
    text = text.replace("\r\n", "\n").rstrip() + "\n"
    if _DECEPTIVE.search(text):
        return [Malformed("The message has invisible or control characters; leave them out.")]
    actions: list[Action] = [_replace(_lines(match[1]), _lines(match[2])) for match in _SEARCH.finditer(text)]
    text = _SEARCH.sub("", text)
    for match in _FENCE.finditer(text):
        actions += _fenced(match[1].lower(), match[2])
    actions += _commands(_FENCE.sub("", text))
    return actions or [Malformed(f"There is no action in that message. {HELP}")]


def whole_text(old: str, new: str) -> str:
    r"""The message that replaces whole lines of text, however many.

    >>> parse(whole_text("a\n", "b"))
    [Replace(old=('a',), new=('b',))]
    """
    old, new = (part if part.endswith("\n") else f"{part}\n" for part in (old, new))
    return f"<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n"


def _fenced(language: str, body: str) -> list[Action]:
    if language == "diff" or (not language and re.search("^[-+]", body, re.MULTILINE)):
        return _diff(body)
    if language in ("python", "python3", "py"):
        return [Rewrite(body)] if body.strip() else []
    commands = _commands(body)
    return [Rewrite(body)] if body.strip() and not language and not commands else commands


def _commands(text: str) -> list[Action]:
    """The last line that is a command and nothing else, if there is one."""
    for line in reversed(_lines(text)):
        if found := _COMMAND.fullmatch(line.strip().strip("`")):
            return [Command(found[1] or found[2], (found[3] or "").strip())]
    return []


def _replace(old: list[str], new: list[str]) -> Replace | Malformed:
    if not any(line.strip() for line in old):
        return Malformed("An edit needs at least one line to look for: the lines as they are now.")
    return Replace(tuple(old), tuple(new))


def _diff(body: str) -> list[Action]:
    """Hunks of a unified or bare diff; file headers and ``@@`` lines only separate hunks."""
    actions: list[Action] = []
    for hunk in _HEADER.split(_NO_NEWLINE.sub("", body)):
        old: list[str] = []
        new: list[str] = []
        for line in hunk.rstrip().split("\n"):
            said = line[1:] if line.startswith(("+", "-", " ")) else line
            if not line.startswith("+"):
                old.append(said)
            if not line.startswith("-"):
                new.append(said)
        if old != new:
            actions.append(_replace(old, new))
    return actions or [Malformed('The diff changes nothing: put wrong lines after "-", right after "+".')]


def _lines(text: str) -> list[str]:
    """Lines as an editor counts them; ``str.splitlines`` also splits at form feeds and the like."""
    return text.split("\n")[:-1]
