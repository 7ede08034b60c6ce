"""The desk on a real PostgreSQL server: each episode has a database and a role of its own there."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast, final

from envkit.environments.sql_desk.confinement import STATEMENT_S, TEMPORARY_KB, WRITTEN
from envkit.environments.sql_desk.desk import COMPARED, SHOWN, Result
from envkit.environments.sql_desk.guard import NotAllowed, statements
from envkit.environments.sql_desk.server import Server
from envkit.environments.sql_desk.session import Refused, Session, Silent
from envkit.errors import SandboxError
from envkit.types import JSON

#: Why the server stopped a statement -> what is said of it. Its own words would tell of its insides.
_STOPPED: Final[Mapping[str, str]] = {
    "2200H": f"more than {WRITTEN:,} rows written",
    "42501": "permission denied",
    "53200": "out of memory",
    "53400": f"more than {TEMPORARY_KB // 1024} MB of temporary data",
    "55P03": f"too slow: waited more than {STATEMENT_S:g} s",
    "57014": f"too slow: more than {STATEMENT_S:g} s",
}
#: Classes of reasons that lie in the statement, and that the server explains in terms of it.
_EXPLAINED: Final = ("0A", "20", "21", "22", "23", "25", "42", "44", "54")
#: Tables in the order that they were made in, so that later ones may refer to earlier ones.
_TABLES: Final = """
SELECT format('desk.%I', relname) FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'desk'::regnamespace ORDER BY oid
"""
_ROWS: Final = "SELECT line FROM envkit.rows($1, $2::integer)"


@final
class PostgresDesk:
    """A database on a server, and a role that has nothing else. Owned by whoever made it.

    Args:
        server: stays its owner's.
        script: makes tables and rows.

    Raises:
        SandboxError: the server is gone or full, or the script does not run.
    """

    def __init__(self, server: Server, script: str) -> None:
        self._server = server
        self.name = server.make()
        self._player: Session | None = None
        self._owner: Session | None = None
        self._schema, self._emptied = "", ""
        #: What was loaded, as long as nothing has been run since.
        self._fresh: str | None = None
        self._closed = False
        self._ended = ""
        try:
            self.load(script)
        except BaseException:
            self.close()
            raise

    def run(self, sql: str, *, write: bool, rows: int = SHOWN) -> Result:
        """Run statements; what is wrong with them is in the result, and then none of them holds.

        Raises:
            SandboxError: the server is gone.
        """
        if self._ended:
            return Result(error=self._ended)
        try:
            each = statements(sql)
        except NotAllowed as error:
            return Result(error=str(error))
        if self._player is None:
            self._player = self._server.player_of(self.name)
        player, self._fresh = self._player, None
        end = time.monotonic() + STATEMENT_S
        columns: list[str] = []
        found: list[list[JSON]] = []
        changed = 0
        try:
            player.script("BEGIN" if write else "BEGIN READ ONLY")
            for statement in each:
                if time.monotonic() > end:
                    raise Refused("57014", "")
                columns, found = player.prepare(statement), []
                if columns:
                    found = _rows(player, statement, rows + 1)
                else:
                    changed += player.execute()
                if not player.inside:
                    raise Refused("42501", "")
            player.script("COMMIT")
        except Refused as error:
            player.script("ROLLBACK")
            return Result(error=_said(error))
        except Silent:
            if not self._server.alive:
                raise
            # It still runs, over the only connection that its role may have.
            self._ended = f"the database has ended: {_STOPPED['57014']}"
            return Result(error=self._ended)
        return Result(columns, found[:rows], len(found) > rows, changed)

    def attempt(
        self, scripts: Sequence[str], sql: str, tables: Mapping[str, Sequence[str]] | None
    ) -> list[Result]:
        """Begin anew with one database after the other, and run the same statements; see `Desk.attempt`.

        Raises:
            SandboxError: a script does not run, or the server is gone.
        """
        found: list[Result] = []
        for script in scripts:
            self.load(script)
            result = self.run(sql, write=tables is not None, rows=COMPARED)
            if tables is not None and not result.error:
                state = self.state(tables)
                wrong = state if isinstance(state, str) else ""
                result = replace(result, error=wrong, tables=state)
            found.append(result)
            if result.error:
                break
        return found

    def state(self, tables: Mapping[str, Sequence[str]]) -> JSON:
        """The rows of each of these tables, which are given with their columns; or, as text, what is wrong.

        Read by the owner of the tables, over a connection of its own.

        Raises:
            SandboxError: the server is gone.
        """
        if self._ended:
            return self._ended
        found: list[JSON] = []
        for table, columns in tables.items():
            names = ", ".join(f'"{name}"' for name in columns)
            try:
                rows = _rows(
                    self._owning(), f'SELECT {names} FROM desk."{table}" ORDER BY {names}', COMPARED + 1
                )
            except Refused as error:
                return f"{table}: {_said(error)}"
            if len(rows) > COMPARED:
                return f"{table}: more than {COMPARED:,} rows"
            found.append(cast("JSON", rows))
        return found

    def load(self, script: str) -> None:
        """Begin anew with other rows, and with other tables if the script makes others.

        Raises:
            SandboxError: the script does not run, or the server is gone.
        """
        if self._ended or script == self._fresh:
            return
        schema, insert, rows = script.partition("INSERT INTO")
        owner, self._fresh = self._owning(), None
        try:
            if self._player is not None:
                self._player.script("DISCARD ALL")
            if schema != self._schema:
                self._schema = ""
                owner.script("DROP SCHEMA IF EXISTS desk CASCADE; CREATE SCHEMA desk")
                owner.script(schema)
                tables = [str(name) for [name] in owner.ask(_TABLES)]
                counted = "".join(
                    f"CREATE TRIGGER envkit BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW "
                    "EXECUTE FUNCTION envkit.count();"
                    for table in tables
                )
                owner.script(
                    f"{counted} GRANT USAGE ON SCHEMA desk TO {self.name};"
                    f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA desk TO {self.name}"
                )
                self._schema, self._emptied = schema, "".join(f"DELETE FROM {t};" for t in reversed(tables))
            owner.ask("SELECT setval('envkit.written', 1)")
            owner.script(f"{self._emptied} {insert}{rows}")
            self._fresh = script
        except Refused as error:
            raise SandboxError(f"the database could not be loaded: {error.message}") from error

    def close(self) -> None:
        """End the database. Idempotent; where the server is away, whoever starts next does it."""
        if self._closed:
            return
        self._closed = True
        for session in (self._player, self._owner):
            if session is not None:
                session.close()
        with contextlib.suppress(SandboxError):
            self._server.drop(self.name)

    def _owning(self) -> Session:
        if self._owner is None:
            self._owner = self._server.owner_of(self.name)
        return self._owner


def _rows(session: Session, query: str, most: int) -> list[list[JSON]]:
    """The rows of a query.

    Raises:
        Refused: the query failed, or its rows are too long, or no rows.
    """
    try:
        return [_row(str(line)) for [line] in session.ask(_ROWS, query, str(most))]
    except (ValueError, RecursionError):
        raise Refused("54000", "a value that cannot be shown") from None


def _row(line: str) -> list[JSON]:
    """The values of a row, which is a JSON object; two columns may have one name."""
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


def _said(error: Refused) -> str:
    """Why a statement was refused, as an agent reads it: short, and the same on every server."""
    if error.state in _STOPPED:
        return _STOPPED[error.state]
    if error.state.startswith(_EXPLAINED):
        return " ".join(error.message.split())[:200]
    return "the server refuses that"
