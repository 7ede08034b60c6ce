"""Checks that a PostgreSQL server can confine what runs on it."""

from __future__ import annotations

from typing import Final

from envkit.environments.sql_desk.postgres.cleanup import OWNED_NAME
from envkit.environments.sql_desk.postgres.connection import PostgresConnection, QueryRefused
from envkit.errors import UsageError

#: Memory that one process of the server must not be able to allocate.
MEMORY_BYTES: Final = 512 * 2**20
#: Oldest version, in the server's numbering.
MIN_VERSION: Final = 130_000


def require_suitable(connection: PostgresConnection) -> None:
    """Check version, privileges and databases, as the connection string's role.

    Raises:
        UsageError: the server is too old, the role is no superuser, or every role may use some database.
    """
    if (version := connection.version) < MIN_VERSION:
        raise UsageError(
            f"the server is PostgreSQL {version // 10000}; expected {MIN_VERSION // 10000} or later"
        )
    [[name, is_superuser]] = connection.query(
        "SELECT rolname, rolsuper FROM pg_roles WHERE rolname = current_user"
    )
    if is_superuser != "t":
        raise UsageError(
            f"role {name} is no superuser, so it cannot make confined databases and roles; expected a "
            "superuser of a server that serves nothing else"
        )
    open_to_all = connection.query(
        "SELECT quote_ident(datname) FROM pg_database WHERE datallowconn AND datname !~ $1 "
        "AND has_database_privilege('public', oid, 'CONNECT') ORDER BY 1",
        f"^{OWNED_NAME.pattern}$",
    )
    if open_to_all:
        names = ", ".join(str(row[0]) for row in open_to_all)
        raise UsageError(
            f"every role of the PostgreSQL server may connect to {names}; "
            f"run: REVOKE CONNECT ON DATABASE {names} FROM PUBLIC"
        )


def require_bounded_memory(connection: PostgresConnection) -> None:
    """Check that the operating system limits the server's memory, which PostgreSQL cannot do for a role.

    Args:
        connection: of a role that statements may run as.

    Raises:
        UsageError: a statement can allocate `MEMORY_BYTES`.
    """
    try:
        connection.query(f"SELECT length(repeat('x', {MEMORY_BYTES}))")
    except QueryRefused as error:
        if error.state == "53200":
            return
        raise
    raise UsageError(
        f"the PostgreSQL server lets a statement allocate {MEMORY_BYTES // 2**20} MB; expected a limit: "
        "start it under `ulimit -d 262144`, or in Docker with --ulimit data=268435456"
    )
