"""One connection to a PostgreSQL server, over which strangers' statements get there one by one."""

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


class Refused(Exception):
    """The server did not do what it was asked, for a reason of its own or of the asker.

    Args:
        state: its five characters for the reason.
        message: its words, without details.
    """

    def __init__(self, state: str, message: str) -> None:
        super().__init__(f"{state}: {message}")
        self.state, self.message = state, message


class Silent(SandboxError):
    """Nothing came back within a connection's patience."""


@final
class Session:
    """One connection. Owned by whoever opened it; not thread-safe.

    It speaks to libpq itself, for two reasons: a server that hangs must not hang its client, and what a
    stranger sends must be one statement, which only the extended protocol makes sure of.

    Args:
        connection: becomes the session's.
        patience_s: a server that is silent for longer is broken.
    """

    def __init__(self, connection: Connection[Any], patience_s: float) -> None:
        self._connection, self._patience_s = connection, patience_s
        self._pg: PGconn = connection.pgconn

    @property
    def version(self) -> int:
        """Of the server, such as 150002."""
        return self._pg.server_version

    @property
    def inside(self) -> bool:
        """In a transaction that nothing has failed in."""
        from psycopg.pq import TransactionStatus

        return self._pg.transaction_status == TransactionStatus.INTRANS

    def script(self, text: str) -> None:
        """Run any number of statements that are trusted, in one transaction unless they say otherwise.

        Raises:
            Refused: one of them failed.
            SandboxError: the server is gone or silent.
        """
        self._sent(partial(self._pg.send_query, text.encode()))

    def ask(self, statement: str, *values: str) -> list[list[str | None]]:
        """The rows of a single trusted statement, as text.

        Raises:
            Refused, SandboxError: as `script`.
        """
        parameters = [value.encode() for value in values]
        found = self._sent(partial(self._pg.send_query_params, statement.encode(), parameters))
        columns = range(found.nfields)
        return [
            [
                None if (value := found.get_value(row, column)) is None else value.decode()
                for column in columns
            ]
            for row in range(found.ntuples)
        ]

    def prepare(self, statement: str) -> list[str]:
        """Have a single statement read, without running it; the columns of its rows, none if it gives none.

        Raises:
            Refused, SandboxError: as `script`.
        """
        self._sent(partial(self._pg.send_prepare, b"", statement.encode()))
        found = self._sent(partial(self._pg.send_describe_prepared, b""))
        return [(found.fname(column) or b"").decode() for column in range(found.nfields)]

    def execute(self) -> int:
        """Run what was prepared; how many rows it has changed.

        Raises:
            Refused, SandboxError: as `script`.
        """
        return self._sent(partial(self._pg.send_query_prepared, b"", [])).command_tuples or 0

    def verifier(self, password: str, role: str) -> str:
        """What a server checks a password with, in which it cannot be read."""
        return self._pg.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()

    def close(self) -> None:
        """Idempotent."""
        self._connection.close()

    def _sent(self, send: Callable[[], None]) -> PGresult:
        """The last result of what ``send`` asks for."""
        import psycopg
        from psycopg.pq import DiagnosticField, ExecStatus

        try:
            send()
            found = self._last()
        except psycopg.Error:
            self.close()
            raise SandboxError("the PostgreSQL server has ended the connection") from None
        if found.status == ExecStatus.FATAL_ERROR:
            state = (found.error_field(DiagnosticField.SQLSTATE) or b"").decode()
            message = (found.error_field(DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
            # 08: connection; 57P: the server is going down, or an administrator has ended the connection.
            if not state or (state.startswith(("08", "57P")) and state != "08P01"):
                self.close()
                raise SandboxError(f"the PostgreSQL server has ended the connection ({state or 'no reason'})")
            raise Refused(state, message)
        if found.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.EMPTY_QUERY):
            self.close()  # it waits for data, which nobody sends
            raise Refused("0A000", "that is not allowed")
        return found

    def _last(self) -> PGresult:
        from psycopg.pq import ExecStatus

        end = time.monotonic() + self._patience_s
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
            raise Silent(f"the PostgreSQL server was silent for {self._patience_s:g} s")
