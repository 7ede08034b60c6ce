"""Names of databases and roles that say whose they are, and the removal of those whose owner is gone."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable
from typing import Final

from envkit.environments.sql_desk.session import Refused, Session

#: Of the advisory lock that a living owner holds; the second number is its own.
_LOCK: Final = 0x656E766B
#: Names of what somebody owns; the group is the number of the owner's lock.
LEASED: Final = re.compile(r"envkit_[0-9]+_([0-9a-f]{8})_[0-9a-z]+")


def lease(session: Session) -> str:
    """Become an owner for as long as a session lasts; what the owner's names begin with."""
    key = secrets.randbits(31)
    session.ask("SELECT pg_advisory_lock($1::int, $2::int)", str(_LOCK), str(key))
    return f"envkit_{os.getpid()}_{key:08x}"


def reap(session: Session) -> None:
    """Remove what processes have left behind that hold their leases no longer."""
    held = (
        "SELECT lpad(to_hex(objid::bigint), 8, '0') FROM pg_locks "
        "WHERE locktype = 'advisory' AND classid = $1::oid"
    )
    # Asked after the names: whoever makes one holds its lease before.
    remove(session, lambda key: [key] not in session.ask(held, str(_LOCK)))


def remove(session: Session, dead: Callable[[str], bool]) -> None:
    """Drop the databases, then the roles, whose names have a lease that is dead."""
    for kind, names in (
        ("DATABASE", "SELECT datname FROM pg_database WHERE datname ~ $1"),
        ("ROLE", "SELECT rolname FROM pg_roles WHERE rolname ~ $1"),
    ):
        for [name] in session.ask(names, f"^{LEASED.pattern}$"):
            match = LEASED.fullmatch(str(name))
            if match is None or not dead(match[1]):
                continue
            with contextlib.suppress(Refused):  # somebody else is at it
                session.script(f"DROP {kind} IF EXISTS {name}{' WITH (FORCE)' if kind == 'DATABASE' else ''}")


def deserted(admin: Session, database: str, tries: int) -> bool:
    """Whether nobody is connected any more; else those who are have been told to leave.

    DROP DATABASE would look again after 100 ms, and in the end fail.
    """
    for _ in range(tries):
        if admin.ask("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", database) == [["0"]]:
            return True
        time.sleep(0.001)
    admin.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database)
    return False
