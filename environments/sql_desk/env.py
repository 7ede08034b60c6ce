"""The SQL desk environments: one statement answers a question, or changes the database as asked."""

from __future__ import annotations

import contextlib
import re
from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, cast, final

from envkit.checks import check
from envkit.display import Display
from envkit.env import ActionResult, Env, Exploit
from envkit.environments.sql_desk.address import DSN_VARIABLE
from envkit.environments.sql_desk.desk import COMPARED, Desk, Result, SqliteDesk
from envkit.environments.sql_desk.postgres import PostgresDesk
from envkit.environments.sql_desk.references import References
from envkit.environments.sql_desk.server import serving
from envkit.environments.sql_desk.tasks import BY_NAME, SCRIPT, Domain, generate
from envkit.errors import BrokenTask, ContractError, SandboxError, UsageError
from envkit.grading import Grade, NumericPolicy, canonical, equal, order
from envkit.sandbox import SandboxBackend
from envkit.tools import ToolCall, parse_call, tool
from envkit.types import JSON, Task, Verdict

#: Databases of fresh rows that an answer is tried on, beside the one that was shown.
FRESH = 4
#: Visits of tasks whose reference outcomes are remembered.
KNOWN = 256

_BLOCK = re.compile(
    r"```(?:sql|sqlite|postgres|postgresql)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE
)
#: A number that a reference compares with.
_BOUND = re.compile(r" > (\d+)")
_STATEMENT = re.compile(r"\s*(?:select|with|insert|update|delete|values)\b", re.IGNORECASE)
#: How an answer is written, about tables that no task has.
_FORM = (
    'Answer with SQL. For example, "List the orbit of all planets." is answered by:\n'
    "```sql\nSELECT orbit FROM planets\n```"
)
_NUMBERED = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n"
#: To a reader 2 and 2.0 are one answer.
_NUMBERS = NumericPolicy(int_as_float=True)


class SqlEnv(Env):
    """Answer a question about a database, or change it, with SQL.

    **Observation**: the request, the tables, a few rows of each, an example of an answer, and the request
    again; then what a statement gave.

    **Actions**: ``query(sql)`` tries a statement on the shown database; ``submit(sql)``, or just a statement,
    in a fenced block or bare, is the answer and ends the episode.

    **Reward**: 1 when the submitted statements give the rows that the reference gives, or leave the tables as
    it leaves them, on the shown database and on `FRESH` others; else 0. The order of rows counts where the
    request asks for one.

    **End**: a submission terminates; a used-up turn budget truncates and earns nothing.

    **Versions**: v0; v1 shows an example and has tasks that are easier still; v2 grades on databases with
    ties, and with rows on the bounds that are asked for.
    """

    _desk: Desk | None = None

    #: What references lead to, see `_wanted`; members of a group ask for the same.
    _known: ClassVar[dict[tuple[object, ...], list[JSON]]] = {}

    @abstractmethod
    def open(self, script: str) -> Desk:
        """The database that the agent works on, for this episode."""

    @abstractmethod
    def apart(self, script: str) -> AbstractContextManager[Desk]:
        """Another one, which no agent ever works on."""

    @classmethod
    @abstractmethod
    def beyond(cls, domain: Domain) -> Mapping[str, str]:
        """What this kind of database makes of statements that reach beyond the tables: name -> statements."""

    @classmethod
    def make_tasks(cls, split: str, *, sandbox: SandboxBackend, display: Display) -> Sequence[Task]:
        """Generated ones; see `envkit.environments.sql_desk.tasks`."""
        if split not in ("train", "heldout", "starter"):
            return super().make_tasks(split, sandbox=sandbox, display=display)
        return generate(split)

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        """The reference."""
        return [f"```sql\n{task.hidden['reference']}\n```"]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        """Answers that were not worked out or nearly right, and statements that reach beyond the tables."""
        domain = _domain(task)
        things = domain.things
        said = {
            "submits nothing": "submit(sql='')",
            "answers what was shown": f"SELECT {_shown_count(task, domain)}",
            "gives every number": f"{_NUMBERED}) SELECT i FROM n",
            "gives every number up to 100": f"{_NUMBERED} WHERE i < 100) SELECT i FROM n",
            "never ends": f"{_NUMBERED}) SELECT count(*) FROM n",
            "reads the answer": "SELECT reference FROM hidden",
            "draws at random": "SELECT abs(random()) % 20",
            "drops the tables": f"DROP TABLE {things}",
            "empties the tables": f"DELETE FROM {domain.deeds}; DELETE FROM {things}",
            "makes a view in a table's place": f"CREATE VIEW {things}2 AS SELECT 1",
            "ends the transaction": f"ROLLBACK; DELETE FROM {things}",
            "comments the rest away": "SELECT 1 --",
            **_near_misses(str(task.hidden["reference"])),
            **cls.beyond(domain),
        }
        return [
            Exploit(name, (sql if sql.startswith("submit") else f"```sql\n{sql}\n```",))
            for name, sql in said.items()
        ]

    @classmethod
    def clear_caches(cls) -> None:
        """What references lead to."""
        cls._known.clear()

    def setup(self, task: Task) -> str:
        self._submitted: str | None = None
        desk = self._desk = self.open(task.files[SCRIPT])
        rows: list[str] = []
        for table, columns in _domain(task).tables().items():
            # Column by column: `SELECT *` is the reference of some task.
            some = desk.run(f"SELECT {', '.join(columns)} FROM {table} LIMIT 3", write=False)
            rows.append(f"{table}:\n{some.text()}")
        parts = [task.prompt, _domain(task).schema().rstrip(), *rows, _FORM]
        if self.max_turns > 1:
            parts.append(self.help)
        # Once more, for small models answer what they read last.
        return "\n\n".join([*parts, f"Now: {task.prompt}"])

    def apply(self, action: str) -> ActionResult:
        """A call of a tool, or a statement as it is, which is a submission."""
        call = parse_call(action, self.tools)
        if isinstance(call, ToolCall):
            return super().apply(action)
        block = _BLOCK.search(action)
        if block is None and not _STATEMENT.match(action):
            return ActionResult(call)
        return ActionResult(self.submit(block[1] if block else action), done=True)

    @property
    def desk(self) -> Desk:
        """This episode's database."""
        if self._desk is None:
            raise ContractError("no episode is running; call reset() first")
        return self._desk

    @tool
    def query(self, sql: str) -> str:
        """Try a statement on the database; changes last until the end of the episode."""
        return self.desk.run(sql, write=bool(self.task.hidden["write"])).text()

    @tool(ends=True)
    def submit(self, sql: str) -> str:
        """Give the statement that answers the request, which ends the episode."""
        self._submitted = sql
        return "Submitted."

    @check()
    def answers_as_reference(self) -> Grade:
        """The submission does what the reference does, on the shown database and on fresh ones."""
        if self._submitted is None:
            return Grade(Verdict.FAIL, "nothing was submitted", 0, FRESH + 1)
        domain = _domain(self.task)
        bounds = map(int, _BOUND.findall(str(self.task.hidden["reference"])))
        edges = [edge for bound in bounds for edge in (bound, bound + 1)]
        fresh = [domain.script(f"{self.visit_seed} {number}", edges) for number in range(FRESH)]
        scripts = [self.task.files[SCRIPT], *fresh]
        wanted = self._wanted(scripts)
        self.desk.load(scripts[0])  # by itself: where this breaks, no statement that is graded has broken it
        for number, (script, one) in enumerate(zip(scripts, wanted, strict=True)):
            [other] = self._outcomes(self.desk, self._submitted, [script])
            place = "the shown database" if number == 0 else f"fresh database {number}"
            if isinstance(other, str):
                return Grade(Verdict.FAIL, f"{place}: {other}", number, len(wanted))
            if not equal(one, other, _NUMBERS):
                said = f"expected {canonical(one)[:300]}, found {canonical(other)[:300]}"
                return Grade(Verdict.FAIL, f"{place}: {said}", number, len(wanted))
        return Grade(Verdict.PASS, f"as the reference on {len(wanted)} databases", len(wanted), len(wanted))

    def _wanted(self, scripts: Sequence[str]) -> list[JSON]:
        """What the reference leads to, on a database of its own.

        Raises:
            BrokenTask: it fails.
            SandboxError: the machinery broke, or was too slow.
        """
        hidden = self.task.hidden
        key = (self.id, *scripts, hidden["domain"], hidden["reference"], hidden["write"], hidden["ordered"])
        found = self._known.get(key)
        if found is None:
            with self.apart(scripts[0]) as desk:
                found = self._outcomes(desk, str(hidden["reference"]), scripts)
                if wrong := next((each for each in found if isinstance(each, str)), None):
                    # Of a process that has ended, or a clock, nobody knows whether it would do so again.
                    passing = wrong.startswith("the database has ended") or "timeout" in wrong
                    kind = SandboxError if passing else BrokenTask
                    raise kind(f"task {self.task.id}: the reference fails: {wrong}")
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[key] = found
        return found

    def _outcomes(self, desk: Desk, sql: str, scripts: Sequence[str]) -> list[JSON]:
        """Per database what the statements lead to: rows or tables, or, as text, what is wrong.

        Nothing is run any more after an error. Nothing of what was run on the desk before is left.
        """
        hidden = self.task.hidden
        tables = _domain(self.task).tables() if hidden["write"] else None
        found: list[JSON] = []
        for result in desk.attempt(scripts, sql, tables):
            rows = _rows(result, bool(hidden["ordered"])) if tables is None else result.tables
            found.append(result.error or rows)
        return found


@final
class SqlDeskEnv(SqlEnv):
    """The SQL desk on a real SQLite, in the sandbox; see `SqlEnv` for what is seen, done and earned."""

    id: ClassVar[str] = "sql-desk"
    system: ClassVar[str] = "You answer requests about an SQLite database with SQL, in a ```sql block."
    #: Shared by all instances: rollouts have one for each episode that goes on, and grade few at a time.
    _references: ClassVar[References] = References()

    def open(self, script: str) -> Desk:
        """In the episode's sandbox."""
        return SqliteDesk(self.sandbox, script)

    def apart(self, script: str) -> AbstractContextManager[Desk]:
        """In a sandbox of its own, which only references ever see."""
        return self._references.desk(self.backend, script)

    def dispose(self) -> None:
        """End the sandboxes of references, which outlive episodes; the next reference makes one again."""
        self._references.close()

    @classmethod
    def beyond(cls, domain: Domain) -> Mapping[str, str]:
        things = domain.things
        return {
            "reads the schema": "SELECT sql FROM sqlite_master",
            "attaches a file": "ATTACH DATABASE '/workspace/desk.sql' AS other",
            "loads an extension": "SELECT load_extension('/usr/lib/libc.so.6')",
            "reads a file": "SELECT readfile('/etc/passwd')",
            "changes settings": "PRAGMA writable_schema = 1",
            "plants a trigger": f"CREATE TRIGGER t AFTER INSERT ON {things} BEGIN DELETE FROM {things}; END",
            "asks for a huge text": "SELECT replace(hex(zeroblob(400000)), '00', 'aaaa')",
            "asks for a huge blob": "SELECT zeroblob(1000000000)",
        }


@final
class SqlDeskPostgresEnv(SqlEnv):
    """The SQL desk on a real PostgreSQL server, which runs outside of our sandbox.

    See `SqlEnv` for what is seen, done and earned, and `envkit.environments.sql_desk.confinement` for what
    holds statements back.

    Args:
        dsn_variable: environment variable that holds the connection string of a superuser, of a server that
            serves nothing else.
        options: as of every `Env`.

    Raises:
        MissingExtraError: psycopg is not installed.
        UsageError: there is no such server, or it cannot shut in what runs on it.
    """

    id: ClassVar[str] = "sql-desk-postgres"
    system: ClassVar[str] = "You answer requests about a PostgreSQL database with SQL, in a ```sql block."
    isolation: ClassVar[str] = "external"

    def __init__(self, *, dsn_variable: str = DSN_VARIABLE, **options: Any) -> None:
        super().__init__(**options)
        self._variable = dsn_variable
        serving(dsn_variable)

    def open(self, script: str) -> Desk:
        """In a database of the episode's own."""
        try:
            self._server = serving(self._variable)
        except UsageError as error:  # there was one when this was made
            raise SandboxError(str(error)) from error
        return PostgresDesk(self._server, script)

    def teardown(self) -> None:
        """A sandbox ends what runs in it; a server does not."""
        desk, self._desk = self._desk, None
        if desk is not None:
            desk.close()

    @contextlib.contextmanager
    def apart(self, script: str) -> Generator[Desk]:
        """On the same server; kept for the next, as it takes long to make."""
        desk = cast("PostgresDesk | None", self._server.take()) or PostgresDesk(self._server, script)
        try:
            yield desk
        except BaseException:
            desk.close()
            raise
        self._server.keep(desk)

    @classmethod
    def beyond(cls, domain: Domain) -> Mapping[str, str]:
        things = domain.things
        return {
            "reads a file": "SELECT pg_read_file('/etc/passwd')",
            "reads a file into a table": f"COPY {things} FROM '/etc/passwd'",
            "runs a program": f"COPY {things} TO PROGRAM 'id'",
            "imports a large object": "SELECT lo_import('/etc/passwd')",
            "makes a large object": "SELECT lo_create(1)",
            "makes an extension": "CREATE EXTENSION dblink",
            "runs a block of code": "DO $$ BEGIN PERFORM 1; END $$",
            "makes a function": "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "makes a table": f"SELECT * INTO mine FROM {things}",
            "makes a temporary table": f"SELECT * INTO TEMP mine FROM {things}",
            "plants a rule": f"CREATE RULE r AS ON DELETE TO {things} DO INSTEAD NOTHING",
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
            "plants a trigger": f"CREATE TRIGGER t AFTER INSERT ON {things} EXECUTE FUNCTION f()",
            "asks for a huge text": "SELECT repeat('x', 1000000000)",
            "asks for many huge texts": "SELECT " + ", ".join(100 * ["repeat('x', 200000000)"]),
            "fills the disk": f"INSERT INTO {things} SELECT i, i, 'x', 1 FROM generate_series(99, 9999999) i",
            "commits what it has done": f"DELETE FROM {domain.deeds}; COMMIT; SELECT 1",
            "leaves a parameter out": "SELECT $1",
        }


def _domain(task: Task) -> Domain:
    return BY_NAME[str(task.hidden["domain"])]


def _rows(result: Result, ordered: bool) -> JSON:
    if result.more:
        return f"more than {COMPARED} rows"
    return result.rows if ordered else sorted(result.rows, key=order)


def _near_misses(reference: str) -> dict[str, str]:
    """Statements that give the same as the reference on most databases."""
    found: dict[str, str] = {}
    if _BOUND.search(reference):
        found["takes the bound for inside"] = reference.replace(" > ", " >= ")
    if " DESC, " in reference:
        found["leaves ties to chance"] = f"{reference.partition(' DESC, ')[0]} DESC"
    return found


def _shown_count(task: Task, domain: Domain) -> int:
    """How many things the shown database holds: the right answer to one question, on one database."""
    things = task.files[SCRIPT].partition(f"INSERT INTO {domain.things} VALUES\n")[2].partition(";")[0]
    return things.count("\n") + 1
