"""A PostgreSQL server that strangers' statements run on: its databases and roles, made for one owner each.

The server is not in a sandbox of ours, so everything that holds a stranger back is the server's own: see
`_HARDEN` for what a database lacks, `Server.make` for what a role may do, and `Session` for how a statement
gets there. The connection string's role is a superuser and says nothing that a task or an agent has written.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import re
import secrets
import select
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from envkit.errors import MissingExtraError, SandboxError, UsageError

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.pq.abc import PGconn, PGresult

#: Environment variable that holds the connection string, unless another is named.
DSN_VARIABLE: Final = "ENVKIT_POSTGRES_DSN"
#: Of one statement, and of all those of one request together. Wall time: a server counts no other.
STATEMENT_S: Final = 3.0
#: A connection silent for so long is given up: the server stops a role's statements by itself, but for
#: a few that never look at the time; and one to make or drop a database with, which waits for the disk.
PATIENCE_S: Final = STATEMENT_S + 7.0
_ADMIN_PATIENCE_S: Final = 120.0
#: Bytes of all rows of one answer, and of one row that is kept; rows that may be written to one database.
ANSWER_BYTES: Final = 2**20
ROW_BYTES: Final = 4_000
WRITTEN: Final = 10_000
TEMPORARY_KB: Final = 64 * 1024
#: What one process of the server must not be able to allocate.
MEMORY_BYTES: Final = 512 * 2**20
_OLDEST: Final = 130_000
_CONNECT_S: Final = 10
#: Of the advisory lock that a living owner holds; the second number is its own.
_LOCK: Final = 0x656E766B
_LEASED: Final = re.compile(r"envkit_[0-9]+_([0-9a-f]{8})_[0-9a-z]+")
#: What a role's connections begin with. `SET` and set_config() could change it, and are not allowed.
_OPTIONS: Final = {
    "bytea_output": "hex",
    "client_min_messages": "error",
    "datestyle": "iso",
    "extra_float_digits": "1",
    "jit": "off",
    "lock_timeout": f"{STATEMENT_S:.0f}s",
    "max_parallel_workers_per_gather": "0",
    "search_path": "desk",
    "standard_conforming_strings": "on",
    "statement_timeout": f"{STATEMENT_S:.0f}s",
    "timezone": "UTC",
    "work_mem": "4MB",
}

# Everybody may call a function that PostgreSQL itself declares immutable: it sees nothing but its arguments.
# That leaves out files, locks, notifications, settings, sleep, dynamic SQL, clocks and the catalog. Of the
# others there are those behind operators and casts, and a few that format values.
_HARDEN: Final = f"""
DROP SCHEMA public CASCADE;
REVOKE ALL ON ALL TABLES IN SCHEMA pg_catalog, information_schema FROM PUBLIC;
REVOKE ALL ON SCHEMA information_schema FROM PUBLIC;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA pg_catalog, information_schema FROM PUBLIC;
REVOKE USAGE ON LANGUAGE sql, plpgsql FROM PUBLIC;
DO $$
DECLARE name regprocedure;
BEGIN
    FOR name IN SELECT oid FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind <> 'p' AND proname !~ 'acl|^pg_' AND (
            provolatile = 'i' OR provolatile = 's' AND (
                oid IN (SELECT oprcode FROM pg_operator)
                OR oid IN (SELECT castfunc FROM pg_cast WHERE casttarget::regtype::text !~ '^reg')
                OR proname IN (
                    'array_to_string', 'concat', 'concat_ws', 'date_part', 'date_trunc', 'format',
                    'generate_series', 'json_agg', 'json_build_array', 'json_build_object', 'json_object_agg',
                    'jsonb_agg', 'row_to_json', 'to_char', 'to_date', 'to_json', 'to_jsonb', 'to_number'
        )))
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', name);
    END LOOP;
END $$;
CREATE SCHEMA envkit;
GRANT USAGE ON SCHEMA envkit TO PUBLIC;
-- The rows of one query, each as the text of a JSON object; a client that read them itself could not stop
-- before the end of one that fills its memory.
CREATE FUNCTION envkit.rows(query text, most integer, OUT line text) RETURNS SETOF text
LANGUAGE plpgsql AS $$
DECLARE
    found record;
    size bigint := 0;
BEGIN
    FOR found IN EXECUTE query LOOP
        most := most - 1;
        EXIT WHEN most < 0;
        line := row_to_json(found);
        size := size + octet_length(line);
        IF size > {ANSWER_BYTES} THEN
            RAISE program_limit_exceeded USING MESSAGE = 'more than {ANSWER_BYTES:,} bytes of rows';
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
-- A database has no quota: rows are counted as they are written, in a sequence, which no rollback sets back.
CREATE SEQUENCE envkit.written MAXVALUE {WRITTEN};
CREATE FUNCTION envkit.count() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    PERFORM nextval('envkit.written');
    IF octet_length(NEW::text) > {ROW_BYTES} THEN
        RAISE program_limit_exceeded USING MESSAGE = 'a row of more than {ROW_BYTES:,} bytes';
    END IF;
    RETURN NEW;
END $$;
REVOKE ALL ON FUNCTION envkit.count() FROM PUBLIC;
"""


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
        self._where = _parsed(variable)
        self._lock = threading.Lock()
        self._idle: list[Session] = []
        self._kept: list[Closing] = []
        #: Names of what shall go, whose last connection has not ended yet.
        self._doomed: set[str] = set()
        self._counter = itertools.count(1)
        self._password = secrets.token_urlsafe(24)
        self._stem = ""
        try:
            self._lease = self._connect(patience_s=PATIENCE_S)
        except SandboxError as error:
            raise UsageError(f"{error}; environment variable {variable} says where") from None
        try:
            self._check()
            key = secrets.randbits(31)
            self._lease.ask("SELECT pg_advisory_lock($1::int, $2::int)", str(_LOCK), str(key))
            self._stem = f"envkit_{self._pid}_{key:08x}"
            self._owner, self._template = f"{self._stem}_owner", f"{self._stem}_template"
            with contextlib.closing(self._connect()) as admin:
                _reap(admin)
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
        # Settings that only a superuser may give; the others come with the connection.
        role = (
            f"REVOKE ALL ON DATABASE {name} FROM PUBLIC;"
            f"GRANT CONNECT, CREATE ON DATABASE {name} TO {self._owner};"
            f"{self._role(name)} CONNECTION LIMIT 1;"
            f"ALTER ROLE {name} SET temp_file_limit = {TEMPORARY_KB};"
            f"ALTER ROLE {name} SET lc_messages = 'C';"
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
                if _left(admin, one, 20 if one == name else 1):
                    admin.script(f"DROP DATABASE IF EXISTS {one} WITH (FORCE)")
                    admin.script(f"DROP ROLE IF EXISTS {one}")
                    with self._lock:
                        self._doomed.discard(one)

    def owner_of(self, name: str) -> Session:
        """A connection to a database as the owner of its tables; the caller closes it.

        Raises:
            SandboxError: the server is gone, or full.
        """
        return self._connect(self._owner, name)

    def player_of(self, name: str) -> Session:
        """A connection to a database as the role of its name; the caller closes it.

        Raises:
            SandboxError: the server is gone, or full.
        """
        return self._connect(name, name)

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
            with contextlib.suppress(SandboxError, Refused), contextlib.closing(self._connect()) as admin:
                _remove(admin, lambda key: self._stem.endswith(key))
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
        with contextlib.closing(self._connect(database=template)) as inside:
            inside.script(_HARDEN)
            inside.script(
                f"ALTER SCHEMA envkit OWNER TO {owner}; ALTER SEQUENCE envkit.written OWNER TO {owner};"
                f"ALTER FUNCTION envkit.count() OWNER TO {owner};"
                f"ALTER FUNCTION envkit.rows(text, integer) OWNER TO {owner};"
                f"GRANT EXECUTE ON FUNCTION nextval(regclass), setval(regclass, bigint) TO {owner};"
                f"GRANT SELECT ON pg_class TO {owner}"
            )
            inside.script("VACUUM FULL pg_proc, pg_class")  # each clone copies every page
        try:
            probe = self._connect(owner, template)
        except SandboxError as error:
            raise UsageError(
                f"{error}; expected pg_hba.conf to let new roles log in with a password"
            ) from error
        with contextlib.closing(probe):
            self._probe(probe)
        admin.script(f"ALTER DATABASE {template} ALLOW_CONNECTIONS false")

    def _probe(self, session: Session) -> None:
        """Memory is the one thing that a role cannot be held to; the operating system must."""
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

    def _check(self) -> None:
        if (version := self._lease.version) < _OLDEST:
            raise UsageError(
                f"the server is PostgreSQL {version // 10000}; expected {_OLDEST // 10000} or later"
            )
        [[name, powerful]] = self._lease.ask(
            "SELECT rolname, rolsuper FROM pg_roles WHERE rolname = current_user"
        )
        if powerful != "t":
            raise UsageError(
                f"role {name} is no superuser, so it may not make databases and roles that are shut in; "
                "expected a superuser of a server that serves nothing else"
            )
        open_ = self._lease.ask(
            "SELECT quote_ident(datname) FROM pg_database WHERE datallowconn AND datname !~ $1 "
            "AND has_database_privilege('public', oid, 'CONNECT') ORDER BY 1",
            f"^{_LEASED.pattern}$",
        )
        if open_:
            names = ", ".join(str(row[0]) for row in open_)
            raise UsageError(
                f"every role of the PostgreSQL server may connect to {names}; "
                f"run: REVOKE CONNECT ON DATABASE {names} FROM PUBLIC"
            )

    def _role(self, name: str) -> str:
        """The statement that makes a role. The server logs no password, as there is none in it."""
        with self._lock:
            verifier = self._lease.verifier(self._secret(name), name)
        return (
            f"CREATE ROLE {name} LOGIN PASSWORD '{verifier}' "
            "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS NOINHERIT"
        )

    def _secret(self, role: str) -> str:
        return f"{self._password}{role}"

    @contextlib.contextmanager
    def _admin(self) -> Generator[Session]:
        """A superuser's connection, for a while."""
        with self._lock:
            session = self._idle.pop() if self._idle else None
        session = session or self._connect()
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

    def _connect(
        self, role: str = "", database: str = "", *, patience_s: float = _ADMIN_PATIENCE_S
    ) -> Session:
        """A connection as the superuser, or as a role that was made here, which is given less patience."""
        import psycopg
        from psycopg.conninfo import make_conninfo

        where = dict(self._where)
        if database:
            where["dbname"] = database
        if role:
            options = " ".join(f"-c {name}={value}" for name, value in _OPTIONS.items())
            where |= {"user": role, "password": self._secret(role), "options": options}
        try:
            connection = psycopg.connect(make_conninfo("", **where), autocommit=True)
        except psycopg.Error as error:
            raise SandboxError(f"cannot connect to PostgreSQL: {_first_line(error)}") from None
        return Session(connection, PATIENCE_S if role else patience_s)


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


def _reap(session: Session) -> None:
    """Remove what processes have left behind that hold their leases no longer."""
    held = (
        "SELECT lpad(to_hex(objid::bigint), 8, '0') FROM pg_locks "
        "WHERE locktype = 'advisory' AND classid = $1::oid"
    )
    # Asked after the names: whoever makes one holds its lease before.
    _remove(session, lambda key: [key] not in session.ask(held, str(_LOCK)))


def _remove(session: Session, dead: Callable[[str], bool]) -> None:
    """Drop the databases, then the roles, whose names have a lease that is dead."""
    for kind, names in (
        ("DATABASE", "SELECT datname FROM pg_database WHERE datname ~ $1"),
        ("ROLE", "SELECT rolname FROM pg_roles WHERE rolname ~ $1"),
    ):
        for [name] in session.ask(names, f"^{_LEASED.pattern}$"):
            match = _LEASED.fullmatch(str(name))
            if match is None or not dead(match[1]):
                continue
            with contextlib.suppress(Refused):  # somebody else is at it
                session.script(f"DROP {kind} IF EXISTS {name}{' WITH (FORCE)' if kind == 'DATABASE' else ''}")


def _left(admin: Session, database: str, tries: int) -> bool:
    """Whether nobody is connected any more; else those who are have been told to leave.

    DROP DATABASE would look again after 100 ms, and in the end fail.
    """
    for _ in range(tries):
        if admin.ask("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", database) == [["0"]]:
            return True
        time.sleep(0.001)
    admin.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database)
    return False


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
