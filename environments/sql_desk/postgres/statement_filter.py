"""Filter the statements that reach PostgreSQL, by their first word and a few forbidden names.

The server's privileges decide what a statement may do; see `hardening`. This module covers the
rest: commands that neither query nor change rows, and names that reveal the user, the database, the time
or transactions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

#: Limits of one request.
MAX_SQL_BYTES: Final = 20_000
MAX_STATEMENTS: Final = 50
_FIRST_WORDS: Final = ("select", "values", "table", "with", "insert", "update", "delete")
#: Names that reveal the user, the database or the time, which differ between episodes.
_SESSION_NAMES: Final = frozenset(
    (
        *("current_catalog", "current_role", "current_schema", "current_user", "session_user", "system_user"),
        *("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "user"),
    )
)
#: Types whose values PostgreSQL looks up in the catalog, and the schema of our own functions.
_CATALOG_NAMES: Final = frozenset(
    (
        "envkit",
        *("aclitem", "regclass", "regcollation", "regconfig", "regdatabase", "regdictionary", "regnamespace"),
        *("regoper", "regoperator", "regproc", "regprocedure", "regrole", "regtype"),
    )
)
#: Types whose input reads the clock: 'now', 'today'. No table has a column of them. Functions with such an
#: argument or result are not granted either, see `hardening`.
_CLOCK_TYPES: Final = frozenset(
    (
        *("abstime", "date", "datemultirange", "daterange", "time", "timestamp", "timestamptz", "timetz"),
        *("tsmultirange", "tsrange", "tstzmultirange", "tstzrange"),
    )
)
#: Hidden columns of every table, which tell transaction ids, places on the disk and object ids.
_SYSTEM_COLUMNS: Final = frozenset(("cmax", "cmin", "ctid", "tableoid", "xmax", "xmin"))
# Follows PostgreSQL's own scanner, with standard_conforming_strings on. Comments nest.
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
    """The statements are not sent to the server; the message says why."""


def split_statements(text: str) -> list[str]:
    """Split a text into statements, without the semicolons between them.

    Raises:
        NotAllowed: there are none or more than `MAX_STATEMENTS`, the text is too long, or a statement is not
            allowed or does not end.
    """
    if "\0" in text:
        raise NotAllowed("a statement holds a NUL")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise NotAllowed("a statement is no valid text") from None
    if size > MAX_SQL_BYTES:
        raise NotAllowed(f"more than {MAX_SQL_BYTES:,} bytes of statements")
    found: list[str] = []
    begin = 0
    tokens: list[tuple[str, str]] = []
    for kind, start, end in (*_tokens(text), ("end", len(text), len(text))):
        if kind == "end" or text[start:end] == ";":
            if tokens:
                _check(tokens)
                found.append(text[begin:start].strip())
            begin, tokens = end, []
        else:
            tokens.append((kind, text[start:end]))
    if not found:
        raise NotAllowed("no statement")
    if len(found) > MAX_STATEMENTS:
        raise NotAllowed(f"more than {MAX_STATEMENTS} statements")
    return found


def _check(tokens: Sequence[tuple[str, str]]) -> None:
    """Raise `NotAllowed` for a statement with a wrong first word or a forbidden name."""
    first = next((text.lower() for _, text in tokens if text != "("), "")
    if first not in _FIRST_WORDS:
        raise NotAllowed(f"{first[:40]} is not allowed; a statement begins with {', '.join(_FIRST_WORDS)}")
    for kind, text in tokens:
        if kind == "quoted" and text[0] != '"':
            raise NotAllowed("an escaped name is not allowed")
        name = text.lower() if kind == "word" else text.strip('"')
        if (kind == "word" and name in _SESSION_NAMES) or (
            kind in ("word", "quoted") and name in _CATALOG_NAMES
        ):
            raise NotAllowed(f"{name} is not allowed")
        if kind not in ("word", "quoted"):
            continue
        plain = name.lstrip("_")  # the name of an array type begins with one
        if plain in _CLOCK_TYPES or name in _SYSTEM_COLUMNS:
            raise NotAllowed(f"{name} is not allowed")
        if plain.startswith("pg_"):  # also as a type: a catalog's row may hold a time
            raise NotAllowed("permission denied for the catalog")


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield kind, start and end of each token, without spaces and comments."""
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        kind = match.lastgroup if match else None
        if match is None or kind is None or kind == "open":
            raise NotAllowed("a quoted text does not end")
        if kind == "comment":
            at = _comment_end(text, at)
            continue
        if kind == "tag":  # `lastgroup` names the group that closed last
            kind = "text"
        if kind != "space":
            yield kind, at, match.end()
        at = match.end()


def _comment_end(text: str, at: int) -> int:
    """The end of the comment that begins at ``at``; comments nest."""
    depth = 0
    for mark in _COMMENT.finditer(text, at):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    raise NotAllowed("a comment does not end")
