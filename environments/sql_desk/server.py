"""A PostgreSQL server that strangers' statements run on: its databases and roles, made for one owner each.

The server is not in a sandbox of ours, so everything that holds a stranger back is the server's own: see
`envkit.environments.sql_desk.confinement` for what a database lacks, `Server.make` for what a role may do,
and `envkit.environments.sql_desk.session` for how a statement gets there. The connection string's role is a
superuser and says nothing that a task or an agent has written.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import threading
from collections.abc import Generator
from typing import Final, Protocol, final

from envkit.environments.sql_desk.address import PATIENCE_S, Address
from envkit.environments.sql_desk.confinement import HARDEN, bound, own
from envkit.environments.sql_desk.fitness import require_bounded_memory, require_fit
from envkit.environments.sql_desk.leases import deserted, lease, reap, remove
from envkit.environments.sql_desk.session import Refused, Session
from envkit.errors import SandboxError, UsageError


class Closing(Protocol):
    """What can be closed."""

    def close(self) -> None: ...


@final
class Server:
    """Makes databases on one server, and ends them. Thread-safe; see `serving`.

    What it makes is named after its lease, an advisory lock that it holds: PostgreSQL drops that when the
    process dies, however it dies and on whatever machine. Whoever comes next removes what has no holder.

    Raises:
        MissingExtraError: psycopg is not installed.
        UsageError: no such server, or it cannot shut in what runs on it.
    """

    def __init__(self, variable: str) -> None:
        self._pid = os.getpid()
        self._address = Address(variable)
        self._lock = threading.Lock()
        self._idle: list[Session] = []
        self._kept: list[Closing] = []
        #: Names of what shall go, whose last connection has not ended yet.
        self._doomed: set[str] = set()
        self._counter = itertools.count(1)
        self._stem = ""
        try:
            self._lease = self._address.connect(patience_s=PATIENCE_S)
        except SandboxError as error:
            raise UsageError(f"{error}; environment variable {variable} says where") from None
        try:
            require_fit(self._lease)
            self._stem = lease(self._lease)
            self._owner, self._template = f"{self._stem}_owner", f"{self._stem}_template"
            with contextlib.closing(self._address.connect()) as admin:
                reap(admin)
                self._prepare(admin)
        except Refused as error:
            self.close()
            raise UsageError(f"the PostgreSQL server refuses to be set up: {error}") from error
        except BaseException:
            self.close()
            raise
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        """Whether it answers, and nobody has taken the lease away."""
        with self._lock:
            try:
                return bool(self._lease.ask("SELECT 1"))
            except (SandboxError, Refused):
                return False

    def make(self) -> str:
        """A fresh database with nothing in it, and a role of the same name that can do no more than log in.

        The caller ends it with `drop`.

        Raises:
            SandboxError: the server is gone, or full.
        """
        name = f"{self._stem}_{next(self._counter)}"
        role = (
            f"REVOKE ALL ON DATABASE {name} FROM PUBLIC;"
            f"GRANT CONNECT, CREATE ON DATABASE {name} TO {self._owner};"
            f"{self._role(name)} CONNECTION LIMIT 1;"
            f"{bound(name)};"
            f"GRANT CONNECT ON DATABASE {name} TO {name}"
        )
        try:
            with self._admin() as admin:
                admin.script(f"CREATE DATABASE {name} TEMPLATE {self._template}")
                admin.script(role)
        except SandboxError:
            with self._lock:
                self._doomed.add(name)
            raise
        return name

    def drop(self, name: str) -> None:
        """End what `make` made, its connections being closed.

        One that is busy and does not notice is told to end, and the rest is done at a later call.

        Raises:
            SandboxError: the server is gone; then whoever starts next does it.
        """
        with self._lock:
            names = [name, *self._doomed]
            self._doomed.update(names)
        with self._admin() as admin:
            for one in names:
                if deserted(admin, one, 20 if one == name else 1):
                    admin.script(f"DROP DATABASE IF EXISTS {one} WITH (FORCE)")
                    admin.script(f"DROP ROLE IF EXISTS {one}")
                    with self._lock:
                        self._doomed.discard(one)

    def owner_of(self, name: str) -> Session:
        """A connection to a database as the owner of its tables; the caller closes it.

        Raises:
            SandboxError: the server is gone, or full.
        """
        return self._address.connect(self._owner, name)

    def player_of(self, name: str) -> Session:
        """A connection to a database as the role of its name; the caller closes it.

        Raises:
            SandboxError: the server is gone, or full.
        """
        return self._address.connect(name, name)

    def keep(self, thing: Closing) -> None:
        """Take something over until `take` asks for it; closed with the server."""
        with self._lock:
            self._kept.append(thing)

    def take(self) -> Closing | None:
        """What somebody has left with `keep`."""
        with self._lock:
            return self._kept.pop() if self._kept else None

    def close(self) -> None:
        """Remove all that there is of this process. Idempotent; done at exit."""
        if os.getpid() != self._pid:
            return  # a fork's copy: the connections are its parent's
        atexit.unregister(self.close)
        while kept := self.take():
            kept.close()
        if self._stem:
            # What cannot be removed now, the next one reaps.
            with (
                contextlib.suppress(SandboxError, Refused),
                contextlib.closing(self._address.connect()) as admin,
            ):
                remove(admin, lambda key: self._stem.endswith(key))
        for session in (self._lease, *self._idle):
            session.close()

    def _prepare(self, admin: Session) -> None:
        """Make the owner of all tables, and the template of all databases."""
        owner, template = self._owner, self._template
        admin.script(f"{self._role(owner)}; ALTER ROLE {owner} SET lc_messages = 'C'")
        admin.script(
            f"CREATE DATABASE {template} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        admin.script(
            f"REVOKE ALL ON DATABASE {template} FROM PUBLIC; GRANT CONNECT ON DATABASE {template} TO {owner}"
        )
        with contextlib.closing(self._address.connect(database=template)) as inside:
            inside.script(HARDEN)
            inside.script(own(owner))
            inside.script("VACUUM FULL pg_proc, pg_class")  # each clone copies every page
        try:
            probe = self._address.connect(owner, template)
        except SandboxError as error:
            raise UsageError(
                f"{error}; expected pg_hba.conf to let new roles log in with a password"
            ) from error
        with contextlib.closing(probe):
            require_bounded_memory(probe)
        admin.script(f"ALTER DATABASE {template} ALLOW_CONNECTIONS false")

    def _role(self, name: str) -> str:
        """The statement that makes a role. The server logs no password, as there is none in it."""
        with self._lock:
            verifier = self._lease.verifier(self._address.secret(name), name)
        return (
            f"CREATE ROLE {name} LOGIN PASSWORD '{verifier}' "
            "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS NOINHERIT"
        )

    @contextlib.contextmanager
    def _admin(self) -> Generator[Session]:
        """A superuser's connection, for a while."""
        with self._lock:
            session = self._idle.pop() if self._idle else None
        session = session or self._address.connect()
        try:
            yield session
        except Refused as error:
            session.close()
            raise SandboxError(f"the PostgreSQL server refuses: {error}") from error
        except BaseException:
            session.close()
            raise
        with self._lock:
            self._idle.append(session)


_servers: dict[tuple[int, str], Server] = {}
_making: Final = threading.Lock()


def serving(variable: str) -> Server:
    """The server that an environment variable's connection string leads to; this process has one of each.

    Raises:
        MissingExtraError: psycopg is not installed.
        UsageError: there is no such server, or it cannot shut in what runs on it.
    """
    with _making:
        key = os.getpid(), os.environ.get(variable, "")
        found = _servers.get(key)
        if found is not None and not found.alive:  # it was restarted, or was away
            found.close()
            found = None
        if found is None:
            found = _servers[key] = Server(variable)
        return found
