"""The editor's action grammar: parse a message into typed actions, or say how to write it. Pure functions.

Large models prefer search/replace blocks and diffs. A small model repairs best while it copies, so a fenced
``python`` block with a whole function replaces the old one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HELP = """\
Say one of these:
- a ```python block with a whole function: it replaces the function of that name;
- a ```diff block: the wrong lines after "-", the right lines after "+";
- a search/replace block: <<<<<<< SEARCH, old lines, =======, new lines, >>>>>>> REPLACE;
- view [NAME | FIRST-LAST], outline, definition NAME, run, undo, submit.
An edit and a command may stand in one message, the command on the last line."""

#: Help for tasks with examples.
HELP_EXAMPLES = """\
After an edit, you see what the examples give. A submit behind an edit ends the task only if they all hold;
alone it always does."""

#: Help for tasks that edit a whole program, with new functions and imports.
HELP_WHOLE = HELP.replace(
    "with a whole function: it replaces the function of that name;",
    "with the whole program: it replaces the file;",
)


@dataclass(frozen=True, slots=True)
class Replace:
    """Replace the consecutive lines ``old`` by ``new``."""

    old: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Replace the function or class of the same name by ``source``."""

    source: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command of `HELP`; ``argument`` is the rest of its line, stripped."""

    name: str
    argument: str = ""


@dataclass(frozen=True, slots=True)
class Malformed:
    """Text that is not an action; ``hint`` says how to write one."""

    hint: str


Action = Replace | Rewrite | Command | Malformed

# Blocks are whole lines, matched with possessive quantifiers, so that a hostile message takes linear time.
_SEARCH = re.compile(
    r"^<{5,9} ?SEARCH.*\n((?:(?![<=>]{5}).*\n)*+)={5,9}[ \t]*\n((?:(?![<=>]{5}).*\n)*+)>{5,9} ?REPLACE.*\n",
    re.MULTILINE,
)
# The closing fence is optional, because a small model often stops or writes a command right after an edit.
_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(\w*).*\n((?:(?![ \t]*```|(?:run|undo|submit)\n\Z).*\n)*+)(?:[ \t]*```[ \t]*\n)?",
    re.MULTILINE,
)
_HEADER = re.compile(r"^(?:diff --git .*|index [0-9a-f]+\.\..*|--- .*\n\+\+\+ .*|@@.*)\n", re.MULTILINE)
#: The line that git prints after a last line without a newline.
_NO_NEWLINE = re.compile(r"^\\ No newline at end of file\n", re.MULTILINE)
_COMMAND = re.compile(r"(?:(run|outline|undo|submit)|(view|definition)((?: +[\w./-]+){0,2}))")
# Characters that make text look different from what it does (Trojan Source, CVE-2021-42574), carriage
# returns, which only Python treats as line ends, and lone surrogates.
_DECEPTIVE = re.compile(
    "[\0-\b\v-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def parse(text: str) -> list[Action]:
    r"""Return the actions of a message, edits before the command. The list is never empty.

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


def replace_text_message(old: str, new: str) -> str:
    r"""Return the message that replaces whole lines.

    >>> parse(replace_text_message("a\n", "b"))
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
    """Return the last line that is a command, if any."""
    for line in reversed(_lines(text)):
        if found := _COMMAND.fullmatch(line.strip().strip("`")):
            return [Command(found[1] or found[2], (found[3] or "").strip())]
    return []


def _replace(old: list[str], new: list[str]) -> Replace | Malformed:
    if not any(line.strip() for line in old):
        return Malformed("An edit needs at least one line to look for: the lines as they are now.")
    return Replace(tuple(old), tuple(new))


def _diff(body: str) -> list[Action]:
    """Parse a unified or bare diff; file headers and ``@@`` lines only separate hunks."""
    actions: list[Action] = []
    for hunk in _HEADER.split(_NO_NEWLINE.sub("", body)):
        old: list[str] = []
        new: list[str] = []
        for line in hunk.rstrip().split("\n"):
            text = line[1:] if line.startswith(("+", "-", " ")) else line
            if not line.startswith("+"):
                old.append(text)
            if not line.startswith("-"):
                new.append(text)
        if old != new:
            actions.append(_replace(old, new))
    return actions or [Malformed('The diff changes nothing: put wrong lines after "-", right after "+".')]


def _lines(text: str) -> list[str]:
    """Split at newlines only; ``str.splitlines`` also splits at form feeds and others."""
    return text.split("\n")[:-1]
