"""The SQL desk environments: answer a request about a database, or change the database, with SQL."""

from __future__ import annotations

import contextlib
import re
from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, cast, final

from envkit.env import Env
from envkit.env.authored import ActionResult, Exploit, Variant
from envkit.env.checks import check
from envkit.env.compare import NumericPolicy, canonical, equal, order
from envkit.env.grade import Grade
from envkit.env.tools import fenced_blocks, has_call, tool
from envkit.environments.sql_desk.database import COMPARED_ROWS, ENDED, Database, Result
from envkit.environments.sql_desk.postgres.database import PostgresDatabase
from envkit.environments.sql_desk.postgres.dsn import DSN_VARIABLE
from envkit.environments.sql_desk.postgres.hardening import TRUSTED_S
from envkit.environments.sql_desk.postgres.server import server_of
from envkit.environments.sql_desk.reference_pool import ReferencePool
from envkit.environments.sql_desk.sqlite import SqliteDatabase
from envkit.environments.sql_desk.tasks import (
    BY_NAME,
    MAX_NUMBER,
    PEOPLE,
    Asked,
    Domain,
    SqlHidden,
    generate,
    script_of,
)
from envkit.environments.sql_desk.variants import variants_of
from envkit.errors import BrokenTask, ContractError, SandboxError, UsageError
from envkit.runtime.display import Display
from envkit.sandbox import SandboxBackend
from envkit.types import JSON, Task, Verdict

#: Databases with fresh rows on which a submission is graded, in addition to the shown one: a small one, two
#: of the shown size, and one beyond every number in the request and in the submission.
FRESH_DATABASES = 4
#: Most cached outcomes of references, one for each database.
_MAX_CACHED = 1_280

#: Languages of a block that is a submission.
_LANGUAGES = ("", "sql", "sqlite", "postgres", "postgresql")
#: A bound in a reference, such as ``price > 20``.
_BOUND = re.compile(r" > (\d+)")
_NUMBER = re.compile(r"(?<!\w)(?:0x([0-9a-f]{1,8})|\d[\d_]*(?:\.\d*)?(?:e[+-]?\d{1,3})?)", re.IGNORECASE)
_TEXT = re.compile(r"'([^']*)'")
#: A reference with one row.
_AGGREGATE = re.compile(r"SELECT (?:COUNT|MAX|SUM)\(")
_STATEMENT = re.compile(r"\s*(?:select|with|insert|update|delete|values)\b", re.IGNORECASE)
#: An example of an answer, about a table that no task has.
_EXAMPLE = (
    'Answer with SQL. For example, "List the orbit of all planets." is answered by:\n'
    "```sql\nSELECT orbit FROM planets\n```"
)
#: What evidence shows of an outcome.
_EXCERPT_CHARS, _EXCERPT_ITEMS = 300, 60
_NUMBERED = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n"
#: 2 and 2.0 are the same answer.
_NUMBERS = NumericPolicy(int_as_float=True)


class SqlEnv(Env):
    """Answer a question about a database, or change it, with SQL.

    **Observation**: the request, the schema, a few rows of each table, an example of an answer, and the
    request again. Later, the result of a query.

    **Actions**: ``query(sql)`` tries statements on the shown database. ``submit(sql)``, or a statement alone,
    bare or in a fenced block, is the answer and ends the episode.

    **Reward**: 1 if the submission returns the reference's rows, or leaves the tables as the reference does,
    on the shown database and on `FRESH_DATABASES` others of three sizes; else 0. The largest is beyond the
    numbers in the request and in the submission, up to 2,400 items. The order of rows counts if the request
    asks for one.

    **End**: a submission terminates. The last of ``max_turns`` truncates, with reward 0.

    **Versions**: v0. v1 shows an example and adds easier tasks. v2 grades on databases with ties and with
    rows on the bounds of the request. v3 grades on databases of three sizes.
    """

    _database: Database | None = None

    #: Outcomes of references; the members of a group share them.
    _reference_outcomes: ClassVar[dict[tuple[object, ...], JSON]] = {}

    @abstractmethod
    def open_database(self, script: str) -> Database:
        """Open the database that the agent works on in this episode."""

    @abstractmethod
    def reference_database(self, script: str) -> AbstractContextManager[Database]:
        """Open a database for the reference, which no agent ever works on."""

    @classmethod
    @abstractmethod
    def backend_exploits(cls, domain: Domain) -> Mapping[str, str]:
        """Exploit name -> statements that try to reach beyond the tables of this kind of database."""

    @classmethod
    def make_tasks(cls, split: str, *, sandbox: SandboxBackend, display: Display) -> Sequence[Task]:
        """Generate tasks; see `envkit.environments.sql_desk.tasks`."""
        if split not in ("train", "heldout", "starter"):
            return super().make_tasks(split, sandbox=sandbox, display=display)
        return generate(split)

    @classmethod
    def validate_task(cls, task: Task) -> None:
        SqlHidden.from_task(task)

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        """Submit the reference."""
        return [f"```sql\n{SqlHidden.from_task(task).reference}\n```"]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        """Guesses, answers that are almost right, and statements that reach beyond the tables."""
        hidden = SqlHidden.from_task(task)
        domain = BY_NAME[hidden.domain]
        items = domain.items
        attempts = {
            "submits nothing": "submit(sql='')",
            "answers what was shown": f"SELECT {_shown_count(task, domain)}",
            "gives every number": f"{_NUMBERED}) SELECT i FROM n",
            "gives every number up to 100": f"{_NUMBERED} WHERE i < 100) SELECT i FROM n",
            "never ends": f"{_NUMBERED}) SELECT count(*) FROM n",
            "reads the answer": "SELECT reference FROM hidden",
            "draws at random": "SELECT abs(random()) % 20",
            "drops the tables": f"DROP TABLE {items}",
            "empties the tables": f"DELETE FROM {domain.events}; DELETE FROM {items}",
            "makes a view in a table's place": f"CREATE VIEW {items}2 AS SELECT 1",
            "ends the transaction": f"ROLLBACK; DELETE FROM {items}",
            "comments the rest away": "SELECT 1 --",
            **_near_misses(hidden.reference),
            **cls.backend_exploits(domain),
        }
        return [
            Exploit(name, (sql if sql.startswith("submit") else f"```sql\n{sql}\n```",))
            for name, sql in attempts.items()
        ]

    @classmethod
    def variants(cls, task: Task, sandbox: SandboxBackend) -> Sequence[Variant]:
        """Answers of `envkit.environments.sql_desk.variants`."""
        return variants_of(task)

    @classmethod
    def clear_caches(cls) -> None:
        """Drop the cached outcomes of references."""
        cls._reference_outcomes.clear()

    def setup(self, task: Task) -> str:
        self._submission: str | None = None
        self._hidden = SqlHidden.from_task(task)
        self._domain = BY_NAME[self._hidden.domain]
        database = self._database = self.open_database(script_of(task))
        rows: list[str] = []
        for table, columns in self._domain.tables().items():
            # Named columns, because `SELECT *` is the reference of some tasks.
            some = database.run(f"SELECT {', '.join(columns)} FROM {table} LIMIT 3", write=False)
            rows.append(f"{table}:\n{some.text()}")
        parts = [task.prompt, self._domain.schema().rstrip(), *rows, _EXAMPLE]
        if self.max_turns > 1:
            parts.append(self.help)
        # The request is repeated, because small models answer the text that they read last.
        return "\n\n".join([*parts, f"Now: {task.prompt}"])

    def apply(self, action: str) -> ActionResult:
        """Carry out a tool call; a statement alone is a submission."""
        if has_call(action, self.tools):
            return super().apply(action)
        blocks = (text for language, text in fenced_blocks(action) if language in _LANGUAGES)
        statement = next(blocks, action if _STATEMENT.match(action) else None)
        if statement is None:
            return super().apply(action)
        return ActionResult(self.submit(statement), done=True)

    @property
    def database(self) -> Database:
        """The database of this episode."""
        if self._database is None:
            raise ContractError("no episode is running; call reset() first")
        return self._database

    @tool
    def query(self, sql: str) -> str:
        """Try a statement on the database; changes last until the end of the episode."""
        return self.database.run(sql, write=self._hidden.write).text()

    @tool(ends=True)
    def submit(self, sql: str) -> str:
        """Give the statement that answers the request, which ends the episode."""
        self._submission = sql
        return "Submitted."

    @check()
    def answers_as_reference(self) -> Grade:
        """Compare the submission with the reference, on the shown database and on fresh ones."""
        if self._submission is None:
            return Grade(Verdict.FAIL, "nothing was submitted")
        scripts, own = self._scripts(self._submission)
        expected = [*self._expected(scripts, cached=True), *self._expected(own, cached=False)]
        scripts += own
        self.database.load(scripts[0])  # loaded separately: if this fails, no graded statement caused it
        found = self._run_on_each(self.database, self._submission, scripts)
        for number, (wanted, result) in enumerate(zip(expected, found, strict=False)):
            outcome = self._outcome(result, wanted)
            place = "the shown database" if number == 0 else f"fresh database {number}"
            if isinstance(outcome, str):
                ended = outcome.startswith(ENDED)  # on which database is unknown
                return Grade(Verdict.FAIL, outcome if ended else f"{place}: {outcome}")
            if not equal(wanted, outcome, _NUMBERS):
                evidence = f"expected {_excerpt(wanted)}, found {_excerpt(outcome)}"
                return Grade(Verdict.FAIL, f"{place}: {evidence}")
        count = len(expected)
        if len(found) != count:
            raise SandboxError(f"the database gave {len(found)} results for {count} scripts")
        return Grade(Verdict.PASS, f"as the reference on {count} databases")

    def _scripts(self, submission: str) -> tuple[list[str], list[str]]:
        """Scripts of the databases to grade on: the visit's, and those of the submission's own numbers.

        A submission with other numbers than the reference's has a large database and a few tiny ones of its
        own.
        """
        domain, seed = self._domain, self.visit_seed
        asked = _asked(domain, self._hidden.reference)
        # Numbers up to 2 are in every database, and in right answers too, such as ORDER BY 1.
        numbers = {number for number in _numbers(submission) - asked.numbers if number > 2}
        shared = [
            script_of(self.task),
            domain.small_script(seed),
            *(domain.medium_script(f"{seed} {number}", asked) for number in range(FRESH_DATABASES - 2)),
        ]
        large = domain.large_script(seed, asked, numbers)
        return (shared, [large, *domain.tiny_scripts(asked, numbers)]) if numbers else ([*shared, large], [])

    def _expected(self, scripts: Sequence[str], *, cached: bool) -> list[JSON]:
        """Run the reference on a separate database, or take its outcomes from the cache.

        Args:
            scripts: the databases.
            cached: keep the outcomes. Those of a submission's own numbers would fill the memory.

        Raises:
            BrokenTask: the reference fails.
            SandboxError: the machinery broke, or was too slow.
        """
        known = {script: self._reference_outcomes.get((self.id, script, self._hidden)) for script in scripts}
        missing = [script for script, outcome in known.items() if outcome is None]
        if missing:
            with self.reference_database(missing[0]) as database:
                found = self._run_on_each(database, self._hidden.reference, missing)
                outcomes = [self._outcome(result) for result in found]
                for result, outcome in zip(found, outcomes, strict=True):
                    if isinstance(outcome, str):
                        # What may not happen again proves nothing about the task.
                        kind = SandboxError if result.transient else BrokenTask
                        raise kind(f"task {self.task.id}: the reference fails: {outcome}")
            known |= zip(missing, outcomes, strict=True)
            if cached:
                if len(self._reference_outcomes) + len(missing) > _MAX_CACHED:
                    self._reference_outcomes.clear()
                self._reference_outcomes.update(
                    ((self.id, each, self._hidden), known[each]) for each in missing
                )
        return [known[script] for script in scripts]

    def _run_on_each(self, database: Database, sql: str, scripts: Sequence[str]) -> list[Result]:
        return database.run_on_each(scripts, sql, self._domain.tables() if self._hidden.write else None)

    def _outcome(self, result: Result, expected: JSON = None) -> JSON:
        """Return the rows or tables that count, or an error's text.

        Rows are sorted if their order does not count. With an outcome that is expected, only rows of the same
        shape are sorted: others are wrong in any order, and a hostile answer may have millions of values.
        """
        if result.error or self._hidden.write:
            return result.error or result.tables
        if result.more:
            return f"more than {COMPARED_ROWS} rows"
        if self._hidden.ordered or (expected is not None and not _same_shape(result.rows, expected)):
            return result.rows
        return sorted(result.rows, key=order)


@final
class SqlDeskEnv(SqlEnv):
    """The SQL desk on SQLite, in the sandbox; see `SqlEnv` for observations, actions and rewards."""

    id: ClassVar[str] = "sql-desk"
    system: ClassVar[str] = "You answer requests about an SQLite database with SQL, in a ```sql block."
    #: Shared by all instances: rollouts have one per running episode, and grade only a few at a time.
    _references: ClassVar[ReferencePool] = ReferencePool()

    def open_database(self, script: str) -> Database:
        """Open a SQLite database in the episode's sandbox."""
        return SqliteDatabase(self.sandbox, script)

    def reference_database(self, script: str) -> AbstractContextManager[Database]:
        """Open a SQLite database in a separate sandbox."""
        return self._references.open(self.backend, script)

    def dispose(self) -> None:
        """Close the sandboxes of references. They are kept across episodes."""
        self._references.close()

    @classmethod
    def backend_exploits(cls, domain: Domain) -> Mapping[str, str]:
        items = domain.items
        return {
            "reads the schema": "SELECT sql FROM sqlite_master",
            "attaches a file": "ATTACH DATABASE '/workspace/desk.sql' AS other",
            "loads an extension": "SELECT load_extension('/usr/lib/libc.so.6')",
            "reads a file": "SELECT readfile('/etc/passwd')",
            "changes settings": "PRAGMA writable_schema = 1",
            "plants a trigger": f"CREATE TRIGGER t AFTER INSERT ON {items} BEGIN DELETE FROM {items}; END",
            "asks for a huge text": "SELECT replace(hex(zeroblob(400000)), '00', 'aaaa')",
            "asks for a huge blob": "SELECT zeroblob(1000000000)",
        }


@final
class SqlDeskPostgresEnv(SqlEnv):
    """The SQL desk on a PostgreSQL server, which runs outside the sandbox.

    See `SqlEnv` for observations, actions and rewards, and `envkit.environments.sql_desk.postgres.hardening`
    for what limits a statement.

    Args:
        dsn_variable: environment variable with the connection string of a superuser, on a server that
            serves nothing else.
        options: see `Env`.

    Raises:
        MissingExtraError: psycopg is not installed.
        UsageError: the server cannot be reached, or cannot confine what runs on it.
    """

    id: ClassVar[str] = "sql-desk-postgres"
    system: ClassVar[str] = "You answer requests about a PostgreSQL database with SQL, in a ```sql block."
    isolation: ClassVar[str] = "external"

    def __init__(self, *, dsn_variable: str = DSN_VARIABLE, **options: Any) -> None:
        super().__init__(**options)
        self._variable = dsn_variable
        server_of(dsn_variable)

    def open_database(self, script: str) -> Database:
        """Open a new database on the server."""
        try:
            self._server = server_of(self._variable)
        except UsageError as error:  # the server was reachable when this object was made
            raise SandboxError(str(error)) from error
        return PostgresDatabase(self._server, script)

    def teardown(self) -> None:
        """Drop the episode's database, which lies outside the sandbox."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    @contextlib.contextmanager
    def reference_database(self, script: str) -> Generator[Database]:
        """Open another database on the server. It is reused, because creating one is slow."""
        kept = cast("PostgresDatabase | None", self._server.take())
        database = kept or PostgresDatabase(self._server, script, statement_s=TRUSTED_S)
        try:
            yield database
        except BaseException:
            database.close()
            raise
        self._server.keep(database)

    @classmethod
    def backend_exploits(cls, domain: Domain) -> Mapping[str, str]:
        items = domain.items
        return {
            "reads a file": "SELECT pg_read_file('/etc/passwd')",
            "reads a file into a table": f"COPY {items} FROM '/etc/passwd'",
            "runs a program": f"COPY {items} TO PROGRAM 'id'",
            "imports a large object": "SELECT lo_import('/etc/passwd')",
            "makes a large object": "SELECT lo_create(1)",
            "makes an extension": "CREATE EXTENSION dblink",
            "runs a block of code": "DO $$ BEGIN PERFORM 1; END $$",
            "makes a function": "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "makes a table": f"SELECT * INTO mine FROM {items}",
            "makes a temporary table": f"SELECT * INTO TEMP mine FROM {items}",
            "plants a rule": f"CREATE RULE r AS ON DELETE TO {items} DO INSTEAD NOTHING",
            "becomes another role": "SET ROLE postgres",
            "lifts the time limit": "SELECT set_config('statement_timeout', '0', false)",
            "sleeps": "SELECT pg_sleep(60)",
            "takes a lock": "SELECT pg_advisory_lock(1)",
            "notifies": "SELECT pg_notify('a', 'b')",
            "listens": "LISTEN a",
            "lists databases": "SELECT count(*) FROM pg_database",
            "lists others' statements": "SELECT query FROM pg_stat_activity",
            "lists tables": "SELECT count(*) FROM information_schema.tables",
            "reads settings": "SELECT current_setting('data_directory')",
            "asks for the version": "SELECT version()",
            "runs statements from a text": "SELECT query_to_xml('SELECT 1', true, true, '')",
            "plants a trigger": f"CREATE TRIGGER t AFTER INSERT ON {items} EXECUTE FUNCTION f()",
            "asks for a huge text": "SELECT repeat('x', 1000000000)",
            "asks for many huge texts": "SELECT " + ", ".join(100 * ["repeat('x', 200000000)"]),
            "fills the disk": f"INSERT INTO {items} SELECT i, i, 'x', 1 FROM generate_series(99, 9999999) i",
            "commits what it has done": f"DELETE FROM {domain.events}; COMMIT; SELECT 1",
            "leaves a parameter out": "SELECT $1",
        }


def _asked(domain: Domain, reference: str) -> Asked:
    """Find the numbers, kind and person in a reference. Of two kinds, the last one chooses its rows."""
    texts = _TEXT.findall(reference)
    kinds, people = ([text for text in texts if text in known] for known in (domain.kinds, PEOPLE))
    lonely = " NOT IN " in reference
    return Asked(_numbers(reference), ["", *kinds][-1], ["", *people][-1], lonely)


def _numbers(sql: str) -> frozenset[int]:
    """The numbers in statements, rounded down, up to `MAX_NUMBER`."""
    found = (
        float(int(match[1], 16)) if match[1] else float(match[0].replace("_", ""))
        for match in _NUMBER.finditer(sql)
    )
    return frozenset(int(number) for number in found if number <= MAX_NUMBER)


def _same_shape(rows: Sequence[Sequence[JSON]], others: JSON) -> bool:
    """True if both have as many rows, and as many columns."""
    others = cast("Sequence[Sequence[JSON]]", others)
    return len(rows) == len(others) and (not rows or len(rows[0]) == len(others[0]))


def _excerpt(outcome: JSON) -> str:
    """The beginning of rows or tables, as text."""

    def cut(value: JSON) -> JSON:
        if isinstance(value, str):
            return value[:_EXCERPT_CHARS]
        return [cut(item) for item in value[:_EXCERPT_ITEMS]] if isinstance(value, list | tuple) else value

    return canonical(cut(outcome))[:_EXCERPT_CHARS]


def _near_misses(reference: str) -> dict[str, str]:
    """Statements that return the reference's rows on most databases, but not on all."""
    found: dict[str, str] = {}
    if _BOUND.search(reference):
        found["takes the bound for inside"] = reference.replace(" > ", " >= ")
    if " DESC, " in reference:
        found["leaves ties to chance"] = f"{reference.partition(' DESC, ')[0]} DESC"
    if reference.startswith("SELECT") and not _AGGREGATE.match(reference):
        found["takes ten rows"] = f"{reference} LIMIT 10"
    return found


def _shown_count(task: Task, domain: Domain) -> int:
    """Count the items of the shown database: the right answer to one request, on that database only."""
    rows = script_of(task).partition(f"INSERT INTO {domain.items} VALUES\n")[2].partition(";")[0]
    return rows.count("\n") + 1
