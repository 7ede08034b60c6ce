"""The program in the sandbox: runs untrusted statements on SQLite. Standard library only.

It reads lines from standard input and answers each with one line. A line is a JSON list of requests; its
answer is a list of answers, up to the first error. A request has one or more of these parts, in this order:

    {"load": SCRIPT}     creates a database in memory; answer {}, or {"fault": TEXT}
    {"sql": TEXT, "write": BOOL, "rows": N}
                         runs statements; answer {"columns": [...], "rows": [[...], ...], "more": BOOL,
                         "changed": N} for the last one, or {"error": TEXT} with nothing changed
    {"state": {TABLE: [COLUMN, ...]}}
                         answer {"tables": [rows of a table, sorted by their columns, ...]}

Statements may read and, with ``write``, insert, update and delete. They may not use other files, settings,
the schema, transactions, random numbers or the time. Integers, texts and nulls are plain JSON. Floats are
{"t": "float", "v": TEXT}, bytes are {"t": "bytes", "v": HEX}.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Most steps of SQLite's virtual machine per request, and the number of steps between two checks.
MAX_STEPS = 20_000_000
COUNT_EVERY = 100_000
#: Bytes of a text or row, and of a statement.
MAX_VALUE_BYTES, MAX_SQL_BYTES = 1_000_000, 20_000
READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
WRITING = READING | {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}
FORBIDDEN_FUNCTIONS = {
    *("random", "randomblob", "load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"),
    # The time differs between episodes.
    *("current_date", "current_time", "current_timestamp", "date", "time", "datetime", "julianday"),
    *("unixepoch", "strftime", "timediff"),
    # The connection's history differs from the reference's, and versions between machines.
    *("changes", "total_changes", "last_insert_rowid", "sqlite_version", "sqlite_source_id", "sqlite_log"),
    *("sqlite_compileoption_get", "sqlite_compileoption_used", "sqlite_offset"),
}
COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)


def encode(value: Any) -> Any:
    """Encode a value of SQLite as JSON."""
    if isinstance(value, float):
        return {"t": "float", "v": repr(value)}
    return {"t": "bytes", "v": value.hex()} if isinstance(value, bytes) else value


def split(text: str) -> list[str]:
    """Split a text where SQLite sees the end of a statement. Drop statements that are only comments."""
    found = [""]
    for piece in text.split(";"):
        found[-1] += piece
        if sqlite3.complete_statement(found[-1] + ";"):
            found.append("")
        else:
            found[-1] += ";"
    # Text that looks like a comment inside a string is removed only for this test, not from the statement.
    return [statement for statement in found if COMMENT.sub("", statement).strip("; \t\r\n\f\v")]


class MemoryDatabase:
    """A database in memory."""

    def __init__(self) -> None:
        self.base = self.fresh()

    @staticmethod
    def fresh() -> sqlite3.Connection:
        base = sqlite3.connect(":memory:", isolation_level=None)
        base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        base.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, MAX_SQL_BYTES)
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
        self.base.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, MAX_SQL_BYTES)
        self.base.execute("PRAGMA foreign_keys = ON")
        return {}

    def run(self, text: str, write: bool, rows: int) -> dict[str, Any]:
        """Run statements, all or none."""
        allowed = WRITING if write else READING
        left = MAX_STEPS // COUNT_EVERY

        def authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
            # The second argument is the function's name.
            if action not in allowed or (
                action == sqlite3.SQLITE_FUNCTION and str(second).lower() in FORBIDDEN_FUNCTIONS
            ):
                return sqlite3.SQLITE_DENY
            # The sqlite_ tables hold the schema.
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
        self.base.execute("BEGIN")
        before = self.base.total_changes
        self.base.set_progress_handler(count, COUNT_EVERY)
        self.base.set_authorizer(authorize)
        columns: list[str] = []
        found: list[Any] = []
        try:
            for statement in statements:
                cursor = self.base.execute(statement)
                found = cursor.fetchmany(rows + 1)
                columns = [column[0] for column in cursor.description or ()]
                cursor.close()
            self.base.set_authorizer(None)
            self.base.execute("COMMIT")  # which checks deferred constraints
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            answer = {"error": f"too slow: more than {MAX_STEPS:,} steps" if left < 0 else str(error)}
        else:
            answer = {
                "columns": columns,
                "rows": [[encode(value) for value in row] for row in found[:rows]],
                "more": len(found) > rows,
                "changed": self.base.total_changes - before,
            }
        self.base.set_authorizer(None)
        self.base.set_progress_handler(None, 0)
        # An error may have ended the transaction: OR ROLLBACK does, and a change that is stopped as too slow.
        if self.base.in_transaction:
            self.base.execute("ROLLBACK")
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
        if "sql" in request and not has_failed(found):
            found |= self.run(request["sql"], request["write"], request["rows"])
        if "state" in request and not has_failed(found):
            found |= self.state(request["state"])
        return found


def has_failed(answer: dict[str, Any]) -> bool:
    """True if the rest of the requests must not run."""
    return "error" in answer or "fault" in answer


def main() -> None:
    """Answer requests until standard input ends."""
    database = MemoryDatabase()
    for line in sys.stdin:
        answers: list[dict[str, Any]] = []
        for request in json.loads(line):
            answers.append(database.answer(request))
            if has_failed(answers[-1]):
                break
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
