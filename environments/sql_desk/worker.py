"""Runs statements of strangers on SQLite, inside the sandbox; standard library only.

A line is a list of requests, answered by a line that is a list of answers, up to one that says what is wrong.
A request asks for one of these, or for several, which are done in this order:

    {"load": SCRIPT}     makes a fresh database in memory; answered by {}, or by {"fault": TEXT}
    {"sql": TEXT, "write": BOOL, "rows": N}
                         runs statements; answered by {"columns": [...], "rows": [[...], ...], "more": BOOL,
                         "changed": N} of the last one, or by {"error": TEXT}, and then nothing is changed
    {"state": {TABLE: [COLUMN, ...]}}
                         answered by {"tables": [rows of a table, in order of their columns, ...]}

Statements may read, and where ``write`` is set insert, update and delete. They may not touch other files,
settings, the schema or transactions, nor ask for random numbers or the time. Whole numbers, texts and nulls
are JSON's; other numbers are {"t": "float", "v": TEXT}, bytes {"t": "bytes", "v": HEX}.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Steps of SQLite's machine that one request may take.
STEPS = 20_000_000
EVERY = 100_000
#: Longest text or row, in bytes, and longest statement.
LONGEST, LONGEST_SQL = 1_000_000, 20_000
READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
WRITING = READING | {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}
REFUSED = {
    *("random", "randomblob", "load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"),
    # What time it is: other at every episode.
    *("current_date", "current_time", "current_timestamp", "date", "time", "datetime", "julianday"),
    *("unixepoch", "strftime", "timediff"),
}
COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)


def encode(value: Any) -> Any:
    """A value of SQLite as JSON."""
    if isinstance(value, float):
        return {"t": "float", "v": repr(value)}
    return {"t": "bytes", "v": value.hex()} if isinstance(value, bytes) else value


def split(text: str) -> list[str]:
    """Statements one by one; SQLite itself says where one ends. Comments alone are none."""
    found = [""]
    for piece in text.split(";"):
        found[-1] += piece
        if sqlite3.complete_statement(found[-1] + ";"):
            found.append("")
        else:
            found[-1] += ";"
    # What begins with anything but a comment keeps that, whatever looks like a comment behind it.
    return [statement for statement in found if COMMENT.sub("", statement).strip("; \t\r\n\f\v")]


class Desk:
    """One database in memory."""

    def __init__(self) -> None:
        self.base = self.fresh()

    @staticmethod
    def fresh() -> sqlite3.Connection:
        base = sqlite3.connect(":memory:", isolation_level=None)
        base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
        base.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LONGEST_SQL)
        base.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        return base

    def load(self, script: str) -> dict[str, Any]:
        self.base.close()
        self.base = self.fresh()
        self.base.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, len(script) + 100)
        try:
            self.base.executescript(script)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            return {"fault": str(error)}
        self.base.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LONGEST_SQL)
        self.base.execute("PRAGMA foreign_keys = ON")
        return {}

    def run(self, text: str, write: bool, rows: int) -> dict[str, Any]:
        """Run statements; all of them hold, or none does."""
        allowed = WRITING if write else READING
        left = STEPS // EVERY

        def authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
            # What a function is called stands second.
            if action not in allowed or (
                action == sqlite3.SQLITE_FUNCTION and str(second).lower() in REFUSED
            ):
                return sqlite3.SQLITE_DENY
            # The tables that hold the schema are nobody's to change.
            if action not in READING and str(first).lower().startswith("sqlite_"):
                return sqlite3.SQLITE_DENY
            return sqlite3.SQLITE_OK

        def count() -> int:
            nonlocal left
            left -= 1
            return int(left < 0)

        if "\0" in text:
            return {"error": "a statement holds a NUL"}
        statements = split(text)
        if not statements:
            return {"error": "no statement"}
        self.base.execute("SAVEPOINT request")
        before = self.base.total_changes
        self.base.set_progress_handler(count, EVERY)
        self.base.set_authorizer(authorize)
        columns: list[str] = []
        found: list[Any] = []
        try:
            for statement in statements:
                cursor = self.base.execute(statement)
                found = cursor.fetchmany(rows + 1)
                columns = [each[0] for each in cursor.description or ()]
                cursor.close()
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            answer = {"error": f"too slow: more than {STEPS:,} steps" if left < 0 else str(error)}
        else:
            answer = {
                "columns": columns,
                "rows": [[encode(value) for value in row] for row in found[:rows]],
                "more": len(found) > rows,
                "changed": self.base.total_changes - before,
            }
        self.base.set_authorizer(None)
        self.base.set_progress_handler(None, 0)
        if "error" in answer:
            self.base.execute("ROLLBACK TO request")
        self.base.execute("RELEASE request")
        return answer

    def state(self, tables: dict[str, list[str]]) -> dict[str, Any]:
        found: list[list[Any]] = []
        for table, columns in tables.items():
            names = ", ".join(f'"{name}"' for name in columns)
            rows = self.base.execute(f'SELECT {names} FROM "{table}" ORDER BY {names}')
            found.append([[encode(value) for value in row] for row in rows])
        return {"tables": found}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "load" in request:
            found |= self.load(request["load"])
        if "sql" in request and not is_wrong(found):
            found |= self.run(request["sql"], request["write"], request["rows"])
        if "state" in request and not is_wrong(found):
            found |= self.state(request["state"])
        return found


def is_wrong(answer: dict[str, Any]) -> bool:
    """Whether nothing more is to be done."""
    return "error" in answer or "fault" in answer


def main() -> None:
    """Answer until nobody asks."""
    desk = Desk()
    for line in sys.stdin:
        answers: list[dict[str, Any]] = []
        for request in json.loads(line):
            answers.append(desk.answer(request))
            if is_wrong(answers[-1]):
                break
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
