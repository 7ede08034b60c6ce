"""Where a PostgreSQL server is, and connections to it."""

from __future__ import annotations

import os
import secrets
from typing import Any, Final, final

from envkit.environments.sql_desk.confinement import OPTIONS, STATEMENT_S
from envkit.environments.sql_desk.session import Session
from envkit.errors import MissingExtraError, SandboxError, UsageError

#: Environment variable that holds the connection string, unless another is named.
DSN_VARIABLE: Final = "ENVKIT_POSTGRES_DSN"
#: A connection silent for so long is given up: the server stops a role's statements by itself, but for
#: a few that never look at the time; and one to make or drop a database with, which waits for the disk.
PATIENCE_S: Final = STATEMENT_S + 7.0
_ADMIN_PATIENCE_S: Final = 120.0
_CONNECT_S: Final = 10


@final
class Address:
    """The server that an environment variable's connection string leads to, and passwords of roles on it.

    Raises:
        MissingExtraError: psycopg is not installed.
        UsageError: the variable holds no connection string.
    """

    def __init__(self, variable: str) -> None:
        self._where = _parsed(variable)
        self._password = secrets.token_urlsafe(24)

    def secret(self, role: str) -> str:
        """The password of a role that is made here."""
        return f"{self._password}{role}"

    def connect(
        self, role: str = "", database: str = "", *, patience_s: float = _ADMIN_PATIENCE_S
    ) -> Session:
        """A connection as the superuser, or as a role that was made here, which is given less patience."""
        import psycopg
        from psycopg.conninfo import make_conninfo

        where = dict(self._where)
        if database:
            where["dbname"] = database
        if role:
            options = " ".join(f"-c {name}={value}" for name, value in OPTIONS.items())
            where |= {"user": role, "password": self.secret(role), "options": options}
        try:
            connection = psycopg.connect(make_conninfo("", **where), autocommit=True)
        except psycopg.Error as error:
            raise SandboxError(f"cannot connect to PostgreSQL: {_first_line(error)}") from None
        return Session(connection, PATIENCE_S if role else patience_s)


def _parsed(variable: str) -> dict[str, Any]:
    """The parts of a connection string."""
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
    except psycopg.Error:  # whose words quote the string, which may hold a password
        raise UsageError(
            f"environment variable {variable} holds no connection string; expected one such as "
            "postgresql://user@localhost/postgres"
        ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
