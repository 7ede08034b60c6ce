"""The PostgreSQL connection string, and connections to the server that it names."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any, Final, final

from envkit.environments.sql_desk.postgres.connection import PostgresConnection
from envkit.environments.sql_desk.postgres.hardening import connection_options
from envkit.errors import MissingExtraError, SandboxError, UsageError

if TYPE_CHECKING:
    from psycopg import Connection

#: Environment variable that holds the connection string by default.
DSN_VARIABLE: Final = "ENVKIT_POSTGRES_DSN"
#: A role's connection is closed this long after its statement should have ended. The server stops most
#: statements, but a few of its functions never check the time.
_GRACE_S: Final = 7.0
#: Longest wait for an answer to the superuser, which creates and drops databases and so waits for the disk.
_ADMIN_TIMEOUT_S: Final = 120.0
_CONNECT_S: Final = 10


@final
class Dsn:
    """A connection string from the environment, and the passwords of the roles created through it.

    Raises:
        MissingExtraError: psycopg is not installed.
        UsageError: the variable holds no connection string.
    """

    def __init__(self, variable: str) -> None:
        self._parameters = _parsed(variable)
        self._password = secrets.token_urlsafe(24)

    def password(self, role: str) -> str:
        """The password of a role that this process creates."""
        return f"{self._password}{role}"

    def connect(self, database: str = "", *, timeout_s: float = _ADMIN_TIMEOUT_S) -> PostgresConnection:
        """Connect as the superuser.

        Args:
            database: empty for the one of the connection string.
            timeout_s: longest wait for an answer, in wall seconds.

        Raises:
            SandboxError: the server cannot be reached, or refuses.
        """
        return PostgresConnection(self._open(database), timeout_s)

    def connect_as(self, role: str, database: str, *, statement_s: float) -> PostgresConnection:
        """Connect as a role that this process created.

        Args:
            role, database: their names.
            statement_s: longest run of one statement, in wall seconds.

        Raises:
            SandboxError: the server cannot be reached, or refuses.
        """
        options = " ".join(f"-c {name}={value}" for name, value in connection_options(statement_s).items())
        opened = self._open(database, user=role, password=self.password(role), options=options)
        return PostgresConnection(opened, statement_s + _GRACE_S)

    def _open(self, database: str, **more: str) -> Connection[Any]:
        import psycopg
        from psycopg.conninfo import make_conninfo

        parameters = self._parameters | more
        if database:
            parameters["dbname"] = database
        try:
            return psycopg.connect(make_conninfo("", **parameters), autocommit=True)
        except psycopg.Error as error:
            raise SandboxError(f"cannot connect to PostgreSQL: {_first_line(error)}") from None


def _parsed(variable: str) -> dict[str, Any]:
    """The parameters of the connection string in an environment variable."""
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError:
        raise MissingExtraError("psycopg", "postgres") from None
    text = os.environ.get(variable, "")
    if not text:
        raise UsageError(
            f"environment variable {variable} is not set; expected the connection string of a PostgreSQL "
            "server, such as postgresql://user@localhost/postgres"
        )
    try:
        return {"connect_timeout": _CONNECT_S, **conninfo_to_dict(text)}
    except psycopg.Error:  # its message quotes the string, which may hold a password
        raise UsageError(
            f"environment variable {variable} holds no connection string; expected one such as "
            "postgresql://user@localhost/postgres"
        ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
