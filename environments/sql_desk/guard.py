"""Which statements a PostgreSQL is handed at all: the reading of their first word and of a few others.

What a statement may do is for the server to say, by the privileges of whoever runs it; see
`envkit.environments.sql_desk.confinement`. Here stands only what no privilege governs: commands that are
neither questions nor changes of rows, and words that tell who asks, where and when.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

#: Longest text of statements, in bytes, and most statements in it.
LONGEST_SQL: Final = 20_000
MOST: Final = 50
_VERBS: Final = ("select", "values", "table", "with", "insert", "update", "delete")
#: Who asks, where and when: other at every episode, and none of a statement's business.
_TELLING: Final = frozenset(
    (
        *("current_catalog", "current_role", "current_schema", "current_user", "session_user", "system_user"),
        *("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "user"),
    )
)
#: Types whose values are looked up in tables that nobody may read, and the schema of our own functions.
_LOOKING_UP: Final = frozenset(
    (
        "envkit",
        *("aclitem", "regclass", "regcollation", "regconfig", "regdatabase", "regdictionary", "regnamespace"),
        *("regoper", "regoperator", "regproc", "regprocedure", "regrole", "regtype"),
    )
)
# As PostgreSQL's own scanner has it, with standard_conforming_strings on. Comments nest.
_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\n\r\f\v]+|--[^\n\r]*)
    |(?P<comment>/\*)
    |(?P<text>[eE]'(?:[^'\\]|''|\\.)*+'|(?:[uU]&)?'(?:[^']|'')*+'|\$(?P<tag>[^\W\d]\w*|)\$.*?\$(?P=tag)\$)
    |(?P<quoted>(?:[uU]&)?"(?:[^"]|"")*+")
    |(?P<open>(?:[eE]|[uU]&)?['"]|\$(?:[^\W\d]\w*)?\$)
    |(?P<word>[^\W\d][\w$]*)
    |(?P<number>[0-9][0-9_.]*)
    |(?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
_COMMENT: Final = re.compile(r"/\*|\*/")


class NotAllowed(Exception):
    """The statements are not handed on; the message says why."""


def statements(text: str) -> list[str]:
    """The statements in a text, one by one, without the semicolons between them.

    Raises:
        NotAllowed: there are none, or more than `MOST`, or one is not allowed, or one does not end.
    """
    if "\0" in text:
        raise NotAllowed("a statement holds a NUL")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise NotAllowed("a statement is no valid text") from None
    if size > LONGEST_SQL:
        raise NotAllowed(f"more than {LONGEST_SQL:,} bytes of statements")
    found: list[str] = []
    begin = 0
    tokens: list[tuple[str, str]] = []
    for kind, start, end in (*_tokens(text), ("end", len(text), len(text))):
        if kind == "end" or text[start:end] == ";":
            if tokens:
                _look(tokens)
                found.append(text[begin:start].strip())
            begin, tokens = end, []
        else:
            tokens.append((kind, text[start:end]))
    if not found:
        raise NotAllowed("no statement")
    if len(found) > MOST:
        raise NotAllowed(f"more than {MOST} statements")
    return found


def _look(tokens: Sequence[tuple[str, str]]) -> None:
    """Refuse a statement that begins with another word than allowed ones, or holds one of those that tell."""
    first = next((text.lower() for _, text in tokens if text != "("), "")
    if first not in _VERBS:
        raise NotAllowed(f"{first[:40]} is not allowed; a statement begins with {', '.join(_VERBS)}")
    for kind, text in tokens:
        if kind == "quoted" and text[0] != '"':
            raise NotAllowed("an escaped name is not allowed")
        name = text.lower() if kind == "word" else text.strip('"')
        if (kind == "word" and name in _TELLING) or (kind in ("word", "quoted") and name in _LOOKING_UP):
            raise NotAllowed(f"{name} is not allowed")


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """Kind, begin and end of everything but spaces and comments."""
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        kind = match.lastgroup if match else None
        if match is None or kind is None or kind == "open":
            raise NotAllowed("a quoted text does not end")
        if kind == "comment":
            at = _comment(text, at)
            continue
        if kind == "tag":  # `lastgroup` names the group that was closed last
            kind = "text"
        if kind != "space":
            yield kind, at, match.end()
        at = match.end()


def _comment(text: str, at: int) -> int:
    """Where the comment ends that begins there."""
    depth = 0
    for mark in _COMMENT.finditer(text, at):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    raise NotAllowed("a comment does not end")
