"""Names the databases and roles of a process, and removes those whose process has ended.

A process holds an advisory lock while it lives. The names of all its databases and roles contain the lock's
number. PostgreSQL releases the lock even if the process is killed. A name without a held lock is left over.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable
from typing import Final

from envkit.environments.sql_desk.postgres.connection import PostgresConnection, QueryRefused

#: First number of the advisory locks; the second one is each process's own.
_LOCK_CLASS: Final = 0x656E766B
#: Names of databases and roles; the group is the second number of the owner's lock, as hex.
OWNED_NAME: Final = re.compile(r"envkit_[0-9]+_([0-9a-f]{8})_[0-9a-z]+")


def claim_prefix(connection: PostgresConnection) -> str:
    """Take a lock for as long as the connection lasts, and return the prefix of names that it marks."""
    key = secrets.randbits(31)
    connection.query("SELECT pg_advisory_lock($1::int, $2::int)", str(_LOCK_CLASS), str(key))
    return f"envkit_{os.getpid()}_{key:08x}"


def remove_orphans(connection: PostgresConnection) -> None:
    """Drop what processes without a held lock have left behind."""
    held = (
        "SELECT lpad(to_hex(objid::bigint), 8, '0') FROM pg_locks "
        "WHERE locktype = 'advisory' AND classid = $1::oid"
    )
    # Locks are read after the names, because a process takes its lock before it makes anything.
    remove(connection, lambda key: [key] not in connection.query(held, str(_LOCK_CLASS)))


def remove(connection: PostgresConnection, is_orphan: Callable[[str], bool]) -> None:
    """Drop databases, then roles, whose lock number ``is_orphan`` accepts."""
    for kind, names in (
        ("DATABASE", "SELECT datname FROM pg_database WHERE datname ~ $1"),
        ("ROLE", "SELECT rolname FROM pg_roles WHERE rolname ~ $1"),
    ):
        force = " WITH (FORCE)" if kind == "DATABASE" else ""
        for [name] in connection.query(names, f"^{OWNED_NAME.pattern}$"):
            match = OWNED_NAME.fullmatch(str(name))
            if match is None or not is_orphan(match[1]):
                continue
            with contextlib.suppress(QueryRefused):  # another process is dropping it
                connection.run_script(f"DROP {kind} IF EXISTS {name}{force}")


def wait_until_unused(admin: PostgresConnection, database: str, tries: int) -> bool:
    """Return True once nobody is connected to a database; else terminate its connections and return False.

    DROP DATABASE would wait 100 ms before it looks again, and fail in the end.
    """
    for _ in range(tries):
        if admin.query("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", database) == [["0"]]:
            return True
        time.sleep(0.001)
    admin.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database)
    return False
