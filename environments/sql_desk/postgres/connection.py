"""A connection to a PostgreSQL server that sends untrusted statements one at a time, with a timeout."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, final

from envkit.errors import SandboxError

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.pq.abc import PGconn, PGresult


_LOST = "the PostgreSQL server has ended the connection"


class QueryRefused(Exception):
    """The server refused a statement.

    Args:
        state: SQLSTATE, five characters; https://www.postgresql.org/docs/current/errcodes-appendix.html.
        message: the server's primary message, without details.
    """

    def __init__(self, state: str, message: str) -> None:
        super().__init__(f"{state}: {message}")
        self.state, self.message = state, message


class ServerSilent(SandboxError):
    """The server sent no answer within the connection's timeout."""


@final
class PostgresConnection:
    """One connection, closed by its opener. Not thread-safe.

    It calls libpq directly for two reasons. A server that hangs must not hang its client. And an untrusted
    text must be a single statement, which only the extended query protocol enforces.

    Args:
        connection: closed together with this object.
        timeout_s: longest wait for an answer, in wall seconds.
    """

    def __init__(self, connection: Connection[Any], timeout_s: float) -> None:
        self._connection, self._timeout_s = connection, timeout_s
        self._pg: PGconn = connection.pgconn

    @property
    def version(self) -> int:
        """The server's version as a number, such as 150002."""
        return self._pg.server_version

    @property
    def in_transaction(self) -> bool:
        """True inside a transaction in which no statement has failed."""
        from psycopg.pq import TransactionStatus

        return self._pg.transaction_status == TransactionStatus.INTRANS

    def run_script(self, text: str) -> None:
        """Run trusted statements, in one transaction unless they control transactions themselves.

        Raises:
            QueryRefused: one of them failed.
            SandboxError: the connection was lost, or the server did not answer in time.
        """
        self._result(partial(self._pg.send_query, text.encode()))

    def query(self, statement: str, *values: str) -> list[list[str | None]]:
        """Run a single trusted statement with parameters, and return its rows as text.

        Raises:
            QueryRefused, SandboxError: as `run_script`.
        """
        parameters = [value.encode() for value in values]
        found = self._result(partial(self._pg.send_query_params, statement.encode(), parameters))
        columns = range(found.nfields)
        return [
            [
                None if (value := found.get_value(row, column)) is None else value.decode()
                for column in columns
            ]
            for row in range(found.ntuples)
        ]

    def prepare(self, statement: str) -> list[str]:
        """Parse a single untrusted statement without running it, and return the columns of its rows.

        Raises:
            QueryRefused, SandboxError: as `run_script`.
        """
        self._result(partial(self._pg.send_prepare, b"", statement.encode()))
        found = self._result(partial(self._pg.send_describe_prepared, b""))
        return [(found.fname(column) or b"").decode() for column in range(found.nfields)]

    def execute(self) -> int:
        """Run the prepared statement, and return the number of rows it changed.

        Raises:
            QueryRefused, SandboxError: as `run_script`.
        """
        return self._result(partial(self._pg.send_query_prepared, b"", [])).command_tuples or 0

    def verifier(self, password: str, role: str) -> str:
        """The SCRAM verifier of a password: the server checks the password with it, but cannot read it."""
        return self._pg.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()

    def _result(self, send: Callable[[], None]) -> PGresult:
        """Send a request, and return its last result."""
        import psycopg
        from psycopg.pq import DiagnosticField, ExecStatus

        try:
            send()
            found = self._last()
        except psycopg.Error:
            self.close()
            raise SandboxError(f"{_LOST}; is it still running?") from None
        if found.status == ExecStatus.FATAL_ERROR:
            state = (found.error_field(DiagnosticField.SQLSTATE) or b"").decode()
            message = (found.error_field(DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
            # 08: connection lost; 57P: the server shuts down, or an administrator ended the connection.
            if not state or (state.startswith(("08", "57P")) and state != "08P01"):
                self.close()
                raise SandboxError(f"{_LOST} ({state or 'no reason'}); is it still running?")
            raise QueryRefused(state, message)
        if found.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.EMPTY_QUERY):
            self.close()  # COPY waits for data that never comes
            raise QueryRefused("0A000", "that is not allowed")
        return found

    def _last(self) -> PGresult:
        from psycopg.pq import ExecStatus

        end = time.monotonic() + self._timeout_s
        while self._pg.flush():
            self._wait(end, writing=True)
        found: PGresult | None = None
        while True:
            while self._pg.is_busy():
                self._wait(end, writing=False)
                self._pg.consume_input()
            result = self._pg.get_result()
            if result is None:
                break
            found = result
            if result.status in (ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH):
                break
        if found is None:
            raise SandboxError("the PostgreSQL server gave no answer")
        return found

    def _wait(self, end: float, *, writing: bool) -> None:
        poll = select.poll()
        poll.register(self._pg.socket, select.POLLOUT if writing else select.POLLIN)
        if not poll.poll(max(end - time.monotonic(), 0) * 1000):
            self.close()
            raise ServerSilent(f"the PostgreSQL server did not answer within {self._timeout_s:g} s")
