"""The PostgreSQL server that untrusted statements run on: it creates a database and a role per episode.

The server is outside the sandbox, so only its own privileges and limits confine a statement. `hardening`
removes privileges from a database, `PostgresServer.make` limits a role, and `connection` sends statements one
by one. The connection string's role is a superuser; it never runs text that a task or an agent has written.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import threading
from collections.abc import Generator
from typing import Final, Protocol, final

from envkit.environments.sql_desk.postgres.cleanup import (
    claim_prefix,
    remove,
    remove_orphans,
    wait_until_unused,
)
from envkit.environments.sql_desk.postgres.connection import PostgresConnection, QueryRefused
from envkit.environments.sql_desk.postgres.dsn import Dsn
from envkit.environments.sql_desk.postgres.hardening import HARDEN, TRUSTED_S, ownership_sql, role_limits_sql
from envkit.environments.sql_desk.postgres.server_checks import require_bounded_memory, require_suitable
from envkit.errors import SandboxError, UsageError

#: Longest wait for an answer on the connection that tells whether the server is alive.
_LEASE_TIMEOUT_S: Final = 10.0


class Closable(Protocol):
    """An object that `PostgresServer.keep` can hold."""

    def close(self) -> None: ...


@final
class PostgresServer:
    """Creates and drops databases and roles on one server. Thread-safe; get it from `server_of`.

    It drops everything at exit. If it is killed, the next process on the server does that; see `cleanup`.

    Args:
        variable: environment variable that holds the connection string of a superuser.

    Raises:
        MissingExtraError: psycopg is not installed.
        UsageError: the server cannot be reached, or cannot confine what runs on it.
    """

    def __init__(self, variable: str) -> None:
        self._pid = os.getpid()
        self._dsn = Dsn(variable)
        self._lock = threading.Lock()
        self._idle: list[PostgresConnection] = []
        self._kept: list[Closable] = []
        #: Databases to drop as soon as their last connection has ended.
        self._dropping: set[str] = set()
        self._counter = itertools.count(1)
        self._prefix = ""
        try:
            self._lease = self._dsn.connect(timeout_s=_LEASE_TIMEOUT_S)
        except SandboxError as error:
            raise UsageError(f"{error}; environment variable {variable} names the server") from None
        try:
            require_suitable(self._lease)
            self._prefix = claim_prefix(self._lease)
            self._owner, self._template = f"{self._prefix}_owner", f"{self._prefix}_template"
            with contextlib.closing(self._dsn.connect()) as admin:
                remove_orphans(admin)
                self._prepare(admin)
        except QueryRefused as error:
            self.close()
            raise UsageError(f"the PostgreSQL server refuses to be set up: {error}") from error
        except BaseException:
            self.close()
            raise
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        """True if the server answers on the connection that holds this process's lock."""
        with self._lock:
            try:
                return bool(self._lease.query("SELECT 1"))
            except (SandboxError, QueryRefused):
                return False

    def make(self) -> str:
        """Create an empty database, and a role of the same name that can only log in; return the name.

        The caller ends both with `drop`.

        Raises:
            SandboxError: the server is gone, or full.
        """
        name = f"{self._prefix}_{next(self._counter)}"
        role = (
            f"REVOKE ALL ON DATABASE {name} FROM PUBLIC;"
            f"GRANT CONNECT, CREATE ON DATABASE {name} TO {self._owner};"
            f"{self._role(name)} CONNECTION LIMIT 1;"
            f"{role_limits_sql(name)};"
            f"GRANT CONNECT ON DATABASE {name} TO {name}"
        )
        try:
            with self._admin() as admin:
                admin.run_script(f"CREATE DATABASE {name} TEMPLATE {self._template}")
                admin.run_script(role)
        except SandboxError:
            with self._lock:
                self._dropping.add(name)
            raise
        return name

    def drop(self, name: str) -> None:
        """Drop what `make` created, after its connections are closed.

        A connection that is still busy is terminated, and its database is dropped by a later call.

        Raises:
            SandboxError: the server is gone; the next process on it will clean up.
        """
        with self._lock:
            names = [name, *self._dropping]
            self._dropping.update(names)
        with self._admin() as admin:
            for pending in names:
                if wait_until_unused(admin, pending, 20 if pending == name else 1):
                    admin.run_script(f"DROP DATABASE IF EXISTS {pending} WITH (FORCE)")
                    admin.run_script(f"DROP ROLE IF EXISTS {pending}")
                    with self._lock:
                        self._dropping.discard(pending)

    def connect_as_owner(self, name: str) -> PostgresConnection:
        """Connect to a database as the owner of its tables; the caller closes it.

        Raises:
            SandboxError: the server is gone, or full.
        """
        return self._dsn.connect_as(self._owner, name, statement_s=TRUSTED_S)

    def connect_as_role(self, name: str, *, statement_s: float) -> PostgresConnection:
        """Connect to a database as its role, for untrusted statements; the caller closes it.

        Args:
            name: of the database.
            statement_s: longest run of one statement, in wall seconds.

        Raises:
            SandboxError: the server is gone, or full.
        """
        return self._dsn.connect_as(name, name, statement_s=statement_s)

    def keep(self, kept: Closable) -> None:
        """Hold an object until `take`; `close` closes it."""
        with self._lock:
            self._kept.append(kept)

    def take(self) -> Closable | None:
        """Return an object that `keep` holds, or ``None``."""
        with self._lock:
            return self._kept.pop() if self._kept else None

    def close(self) -> None:
        """Drop all databases and roles of this process. Idempotent; runs at exit."""
        if os.getpid() != self._pid:
            return  # in a fork: the connections belong to the parent
        atexit.unregister(self.close)
        while kept := self.take():
            kept.close()
        if self._prefix:
            # The next process drops what cannot be dropped now.
            with (
                contextlib.suppress(SandboxError, QueryRefused),
                contextlib.closing(self._dsn.connect()) as admin,
            ):
                remove(admin, lambda key: self._prefix.endswith(key))
        for session in (self._lease, *self._idle):
            session.close()

    def _prepare(self, admin: PostgresConnection) -> None:
        """Create the role that owns all tables, and the template that all databases are cloned from."""
        owner, template = self._owner, self._template
        admin.run_script(f"{self._role(owner)}; ALTER ROLE {owner} SET lc_messages = 'C'")
        admin.run_script(
            f"CREATE DATABASE {template} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        admin.run_script(
            f"REVOKE ALL ON DATABASE {template} FROM PUBLIC; GRANT CONNECT ON DATABASE {template} TO {owner}"
        )
        with contextlib.closing(self._dsn.connect(template)) as inside:
            inside.run_script(HARDEN)
            inside.run_script(ownership_sql(owner))
            inside.run_script("VACUUM FULL pg_proc, pg_class")  # because each clone copies every page
        try:
            probe = self._dsn.connect_as(owner, template, statement_s=TRUSTED_S)
        except SandboxError as error:
            raise UsageError(
                f"{error}; expected pg_hba.conf to let new roles log in with a password"
            ) from error
        with contextlib.closing(probe):
            require_bounded_memory(probe)
        admin.run_script(f"ALTER DATABASE {template} ALLOW_CONNECTIONS false")

    def _role(self, name: str) -> str:
        """The statement that creates a role. It holds a verifier, so the server cannot log a password."""
        with self._lock:
            verifier = self._lease.verifier(self._dsn.password(name), name)
        return (
            f"CREATE ROLE {name} LOGIN PASSWORD '{verifier}' "
            "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS NOINHERIT"
        )

    @contextlib.contextmanager
    def _admin(self) -> Generator[PostgresConnection]:
        """Yield a superuser's connection from the pool."""
        with self._lock:
            session = self._idle.pop() if self._idle else None
        session = session or self._dsn.connect()
        try:
            yield session
        except QueryRefused as error:
            session.close()
            raise SandboxError(f"the PostgreSQL server refuses: {error}") from error
        except BaseException:
            session.close()
            raise
        with self._lock:
            self._idle.append(session)


_servers: dict[tuple[int, str], PostgresServer] = {}
_making: Final = threading.Lock()


def server_of(variable: str) -> PostgresServer:
    """Return this process's `PostgresServer` for an environment variable's connection string.

    Raises:
        MissingExtraError: psycopg is not installed.
        UsageError: the server cannot be reached, or cannot confine what runs on it.
    """
    with _making:
        key = os.getpid(), os.environ.get(variable, "")
        found = _servers.get(key)
        if found is not None and not found.alive:  # the server was restarted or unreachable
            found.close()
            found = None
        if found is None:
            found = _servers[key] = PostgresServer(variable)
        return found
