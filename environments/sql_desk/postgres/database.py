"""The SQL desk's database on a PostgreSQL server, with a role that can use no other database."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast, final

from envkit.environments.sql_desk.database import COMPARED_ROWS, ENDED, SHOWN_ROWS, Result
from envkit.environments.sql_desk.postgres.connection import PostgresConnection, QueryRefused, ServerSilent
from envkit.environments.sql_desk.postgres.hardening import (
    MAX_TEMPORARY_KB,
    MAX_WRITTEN_ROWS,
    STATEMENT_S,
)
from envkit.environments.sql_desk.postgres.server import PostgresServer
from envkit.environments.sql_desk.postgres.statement_filter import NotAllowed, split_statements
from envkit.errors import SandboxError
from envkit.types import JSON

_OUT_OF_MEMORY: Final = "53200"
#: SQLSTATEs of waiting too long for a lock, and of running too long.
_WAITED, _TOO_SLOW = "55P03", "57014"
#: SQLSTATEs that depend on how busy the server is.
_TRANSIENT: Final = (_OUT_OF_MEMORY, _WAITED, _TOO_SLOW)
#: SQLSTATE -> message, for statements that a limit stopped. The server's own message reveals its settings.
_STOP_REASONS: Final[Mapping[str, str]] = {
    "2200H": f"more than {MAX_WRITTEN_ROWS:,} rows written",
    "42501": "permission denied",
    _OUT_OF_MEMORY: "out of memory",
    "53400": f"more than {MAX_TEMPORARY_KB // 1024} MB of temporary data",
    _WAITED: "too slow: waited more than {seconds:g} s",
    _TOO_SLOW: "too slow: more than {seconds:g} s",
}
#: SQLSTATE classes of mistakes in the statement itself, whose messages the agent sees.
_EXPLAINED: Final = ("0A", "20", "21", "22", "23", "25", "42", "44", "54")
#: Tables in the order of creation; a later table may refer to an earlier one.
_TABLES: Final = """
SELECT format('desk.%I', relname) FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'desk'::regnamespace ORDER BY oid
"""
_ROWS: Final = "SELECT line FROM envkit.rows($1, $2::integer)"


@final
class PostgresDatabase:
    """A database and a role on a server; implements `envkit.environments.sql_desk.database.Database`.

    Args:
        server: makes and drops the database.
        script: creates tables and rows.
        statement_s: wall seconds for one statement, and for all statements of one request.

    Raises:
        SandboxError: the server is gone or full, or the script fails.
    """

    def __init__(self, server: PostgresServer, script: str, *, statement_s: float = STATEMENT_S) -> None:
        self._server, self._statement_s = server, statement_s
        self.name = server.make()
        self._role: PostgresConnection | None = None
        self._owner: PostgresConnection | None = None
        self._schema, self._delete_all = "", ""
        #: The loaded script, until a statement is run.
        self._pristine_script: str | None = None
        self._closed = False
        self._end_reason = ""
        try:
            self.load(script)
        except BaseException:
            self.close()
            raise

    def run(self, sql: str, *, write: bool, rows: int = SHOWN_ROWS) -> Result:
        if self._end_reason:
            return Result(error=self._end_reason, transient=True)
        try:
            parsed = split_statements(sql)
        except NotAllowed as error:
            return Result(error=str(error))
        if self._role is None:
            self._role = self._server.connect_as_role(self.name, statement_s=self._statement_s)
        role, self._pristine_script = self._role, None
        end = time.monotonic() + self._statement_s
        columns: list[str] = []
        found: list[list[JSON]] = []
        changed = 0
        try:
            role.run_script("BEGIN" if write else "BEGIN READ ONLY")
            for statement in parsed:
                if time.monotonic() > end:
                    raise QueryRefused(_TOO_SLOW, "")
                columns, found = role.prepare(statement), []
                if columns:
                    found = _rows(role, statement, rows + 1)
                else:
                    changed += role.execute()
                if not role.in_transaction:
                    raise QueryRefused("42501", "")
            role.run_script("COMMIT")
        except QueryRefused as error:
            role.run_script("ROLLBACK")
            return Result(error=self._reason(error), transient=error.state in _TRANSIENT)
        except ServerSilent:
            if not self._server.alive:
                raise
            # The statement still runs, on the only connection that its role may have.
            self._end_reason = f"{ENDED}: {self._reason(QueryRefused(_TOO_SLOW, ''))}"
            return Result(error=self._end_reason, transient=True)
        return Result(columns, found[:rows], len(found) > rows, changed)

    def run_on_each(
        self, scripts: Sequence[str], sql: str, tables: Mapping[str, Sequence[str]] | None
    ) -> list[Result]:
        found: list[Result] = []
        for script in scripts:
            self.load(script)
            result = self.run(sql, write=tables is not None, rows=COMPARED_ROWS)
            if tables is not None and not result.error:
                state = self.table_rows(tables)
                wrong = state if isinstance(state, str) else ""
                result = replace(result, error=wrong, tables=state)
            found.append(result)
            if result.error:
                break
        return found

    def table_rows(self, tables: Mapping[str, Sequence[str]]) -> JSON:
        """Read the rows of each table, over the owner's connection; return a text if a table cannot be read.

        Args:
            tables: table -> columns.

        Raises:
            SandboxError: the server is gone.
        """
        if self._end_reason:
            return self._end_reason
        found: list[JSON] = []
        for table, columns in tables.items():
            names = ", ".join(f'"{name}"' for name in columns)
            try:
                rows = _rows(
                    self._owner_connection(),
                    f'SELECT {names} FROM desk."{table}" ORDER BY {names}',
                    COMPARED_ROWS + 1,
                )
            except QueryRefused as error:
                return f"{table}: {self._reason(error)}"
            if len(rows) > COMPARED_ROWS:
                return f"{table}: more than {COMPARED_ROWS:,} rows"
            found.append(cast("JSON", rows))
        return found

    def load(self, script: str) -> None:
        if self._end_reason or script == self._pristine_script:
            return
        schema, insert, rows = script.partition("INSERT INTO")
        owner, self._pristine_script = self._owner_connection(), None
        try:
            if self._role is not None:
                self._role.run_script("DISCARD ALL")
            if schema != self._schema:
                self._schema = ""
                owner.run_script("DROP SCHEMA IF EXISTS desk CASCADE; CREATE SCHEMA desk")
                owner.run_script(schema)
                tables = [str(name) for [name] in owner.query(_TABLES)]
                counted = "".join(
                    f"CREATE TRIGGER envkit BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW "
                    "EXECUTE FUNCTION envkit.count();"
                    for table in tables
                )
                owner.run_script(
                    f"{counted} GRANT USAGE ON SCHEMA desk TO {self.name};"
                    f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA desk TO {self.name}"
                )
                self._schema, self._delete_all = (
                    schema,
                    "".join(f"DELETE FROM {t};" for t in reversed(tables)),
                )
            owner.query("SELECT setval('envkit.written', 1)")
            owner.run_script(f"{self._delete_all} {insert}{rows}")
            self._pristine_script = script
        except QueryRefused as error:
            raise SandboxError(f"the database could not be loaded: {error.message}") from error

    def close(self) -> None:
        """Drop the database. Idempotent. If the server is unreachable, the next process on it drops it."""
        if self._closed:
            return
        self._closed = True
        for session in (self._role, self._owner):
            if session is not None:
                session.close()
        with contextlib.suppress(SandboxError):
            self._server.drop(self.name)

    def _owner_connection(self) -> PostgresConnection:
        if self._owner is None:
            self._owner = self._server.connect_as_owner(self.name)
        return self._owner

    def _reason(self, error: QueryRefused) -> str:
        """Explain a refusal to the agent briefly, without the server's paths, names or versions."""
        if error.state in _STOP_REASONS:
            return _STOP_REASONS[error.state].format(seconds=self._statement_s)
        if error.state.startswith(_EXPLAINED):
            return " ".join(error.message.split())[:200]
        return "the server refuses that"


def _rows(connection: PostgresConnection, query: str, max_rows: int) -> list[list[JSON]]:
    """Run an untrusted query through envkit.rows(), and return at most ``max_rows`` rows.

    Raises:
        QueryRefused: the query failed, its rows are too long, or a value cannot be shown.
    """
    try:
        return [_row(str(line)) for [line] in connection.query(_ROWS, query, str(max_rows))]
    except (ValueError, RecursionError):
        raise QueryRefused("54000", "a value that cannot be shown") from None


def _row(line: str) -> list[JSON]:
    """Decode a row from a JSON object. Pairs, not a dict, because two columns may share a name."""
    found: tuple[tuple[str, Any], ...] = json.loads(
        line, object_pairs_hook=tuple, parse_float=lambda text: {"t": "float", "v": repr(float(text))}
    )
    return [_value(value) for _, value in found]


def _value(value: Any) -> JSON:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # JSON may hold half a surrogate pair
    if value is None or isinstance(value, int | dict):
        return cast("JSON", value)
    return json.dumps(value)  # an array, or JSON
