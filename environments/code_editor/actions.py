"""The editor's action language: text in, typed actions or a mend out. Pure functions.

Large models like search/replace blocks and whole functions; the shortest action, which a small
model can say, is a fenced ``diff`` of the changed lines.
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
    """``name`` is one of `COMMANDS`; ``argument`` is the rest of the line, stripped."""

    name: str
    argument: str = ""


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not an action; ``mend`` says how to say it right."""

    mend: str


Action = Replace | Rewrite | Command | Malformed

COMMANDS = ("view", "outline", "definition", "run", "undo", "submit")

# The closing fence may be missing: a small model often stops right after the last line.
_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[ \t]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_SEARCH = re.compile(
    r"^<{5,9} ?SEARCH[ \t]*\n(.*?)^={5,9}[ \t]*\n(.*?)^>{5,9} ?REPLACE[ \t]*$", re.MULTILINE | re.DOTALL
)
# Characters that make text read differently from how it runs (Trojan Source, CVE-2021-42574).
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\ufeff]")


def parse(text: str) -> list[Action]:
    """The actions that a message contains, in order; never empty.

    >>> parse("```diff\\n-    return a\\n+    return b\\n```\\nrun")
    [Replace(old=('    return a',), new=('    return b',)), Command(name='run', argument='')]
    """
    if _BIDI.search(text):
        return [Malformed("The message has invisible or bidirectional control characters; leave them out.")]
    actions: list[Action] = []
    rest = text
    for match in _SEARCH.finditer(text):
        actions.append(_replace(match[1].splitlines(), match[2].splitlines()))
    if actions:
        rest = _SEARCH.sub("", text)
    for match in _FENCE.finditer(rest):
        language, body = match[1].lower(), match[2]
        if language == "diff":
            actions += _diff(body)
        elif language in ("python", "py", ""):
            actions.append(Rewrite(body))
    if "```" in rest:
        rest = _FENCE.sub("", rest)
    command = _command(rest)
    if command is not None:
        actions.append(command)
    return actions or [Malformed(f"There is no action in that message. {HELP}")]


def _command(rest: str) -> Command | None:
    """The last line that is a command and nothing else."""
    for line in reversed(rest.strip().splitlines()):
        name, _, argument = line.strip().strip("`").partition(" ")
        takes_argument = name in ("view", "definition")
        if name in COMMANDS and (takes_argument or not argument.strip()) and len(argument.split()) <= 2:
            return Command(name, argument.strip())
    return None


def _replace(old: list[str], new: list[str]) -> Replace | Malformed:
    if not any(line.strip() for line in old):
        return Malformed("An edit needs at least one line to look for: the lines as they are now.")
    return Replace(tuple(old), tuple(new))


def _diff(body: str) -> list[Action]:
    """Hunks of a unified or bare diff; file headers and ``@@`` lines only separate hunks."""
    actions: list[Action] = []
    old: list[str] = []
    new: list[str] = []

    def flush() -> None:
        if old != new:
            actions.append(_replace(old, new))
        old.clear()
        new.clear()

    for line in body.splitlines():
        if line.startswith(("--- ", "+++ ", "@@", "diff ", "index ")):
            flush()
        elif line.startswith("-"):
            old.append(line[1:])
        elif line.startswith("+"):
            new.append(line[1:])
        else:
            context = line[1:] if line.startswith(" ") else line
            old.append(context)
            new.append(context)
    while old and new and not old[-1].strip() and not new[-1].strip():
        old.pop()
        new.pop()
    flush()
    return actions or [Malformed('The diff changes nothing: put the wrong lines after "-", the right after "+".')]
