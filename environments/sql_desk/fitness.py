"""Whether a PostgreSQL server can shut in what runs on it."""

from __future__ import annotations

from typing import Final

from envkit.environments.sql_desk.leases import LEASED
from envkit.environments.sql_desk.session import Refused, Session
from envkit.errors import UsageError

#: What one process of the server must not be able to allocate.
MEMORY_BYTES: Final = 512 * 2**20
OLDEST: Final = 130_000


def require_fit(session: Session) -> None:
    """Look at version, rights and databases, as the connection string's role.

    Raises:
        UsageError: the server is too old, the role no superuser, or a database open to every role.
    """
    if (version := session.version) < OLDEST:
        raise UsageError(f"the server is PostgreSQL {version // 10000}; expected {OLDEST // 10000} or later")
    [[name, powerful]] = session.ask("SELECT rolname, rolsuper FROM pg_roles WHERE rolname = current_user")
    if powerful != "t":
        raise UsageError(
            f"role {name} is no superuser, so it may not make databases and roles that are shut in; "
            "expected a superuser of a server that serves nothing else"
        )
    open_ = session.ask(
        "SELECT quote_ident(datname) FROM pg_database WHERE datallowconn AND datname !~ $1 "
        "AND has_database_privilege('public', oid, 'CONNECT') ORDER BY 1",
        f"^{LEASED.pattern}$",
    )
    if open_:
        names = ", ".join(str(row[0]) for row in open_)
        raise UsageError(
            f"every role of the PostgreSQL server may connect to {names}; "
            f"run: REVOKE CONNECT ON DATABASE {names} FROM PUBLIC"
        )


def require_bounded_memory(session: Session) -> None:
    """Memory is the one thing that a role cannot be held to; the operating system must.

    Args:
        session: of a role that statements may run as.

    Raises:
        UsageError: a statement can allocate `MEMORY_BYTES`.
    """
    try:
        session.ask(f"SELECT length(repeat('x', {MEMORY_BYTES}))")
    except Refused as error:
        if error.state == "53200":
            return
        raise
    raise UsageError(
        f"the PostgreSQL server lets a statement allocate {MEMORY_BYTES // 2**20} MB; expected a limit: "
        "start it under `ulimit -d 262144`, or in Docker with --ulimit data=268435456"
    )
