"""The SQL desk environment: one statement answers a question, or changes the database as asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, final

from envkit.checks import check
from envkit.display import Display
from envkit.env import Effect, Env, Exploit
from envkit.environments.sql_desk.desk import COMPARED, Desk, Result
from envkit.environments.sql_desk.tasks import BY_NAME, SCRIPT, Domain, generate
from envkit.errors import SandboxError
from envkit.grading import Grade, NumericPolicy, canonical, equal
from envkit.sandbox import PeerGone, SandboxBackend
from envkit.tools import Call, read, tool
from envkit.types import JSON, Task, Verdict

#: Databases of fresh rows that an answer is tried on, beside the one that was shown.
FRESH = 4

_BLOCK = re.compile(r"```(?:sql|sqlite)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_STATEMENT = re.compile(r"\s*(?:select|with|insert|update|delete|values)\b", re.IGNORECASE)
_NUMBERED = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n"
#: To a reader 2 and 2.0 are one answer.
_NUMBERS = NumericPolicy(int_as_float=True)


@final
class SqlDeskEnv(Env):
    """Answer a question about a database, or change it, with SQL.

    **Observation**: the request, the tables, a few rows of each; then what a statement gave.

    **Actions**: ``query(sql)`` tries a statement on the shown database; ``submit(sql)``, or just a statement,
    in a fenced block or bare, is the answer and ends the episode.

    **Reward**: 1 when the submitted statements give the rows that the reference gives, or leave the tables as
    it leaves them, on the shown database and on `FRESH` others; else 0. The order of rows counts where the
    request asks for one.

    **End**: a submission terminates; a used-up turn budget truncates and earns nothing.

    **Versions**: v0.
    """

    id: ClassVar[str] = "sql-desk"
    system: ClassVar[str] = "You answer requests about an SQLite database with SQL, in a ```sql block."

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
        """Answers that were not worked out, and statements that reach beyond the tables."""
        domain = _domain(task)
        things = domain.things
        said = {
            "submits nothing": "submit(sql='')",
            "answers what was shown": f"SELECT {_shown_count(task, domain)}",
            "gives every number": f"{_NUMBERED}) SELECT i FROM n",
            "gives every number up to 100": f"{_NUMBERED} WHERE i < 100) SELECT i FROM n",
            "never ends": f"{_NUMBERED}) SELECT count(*) FROM n",
            "reads the answer": "SELECT reference FROM hidden",
            "reads the schema": "SELECT sql FROM sqlite_master",
            "attaches a file": "ATTACH DATABASE '/workspace/desk.sql' AS other",
            "loads an extension": "SELECT load_extension('/usr/lib/libc.so.6')",
            "reads a file": "SELECT readfile('/etc/passwd')",
            "changes settings": "PRAGMA writable_schema = 1",
            "draws at random": "SELECT abs(random()) % 20",
            "drops the tables": f"DROP TABLE {things}",
            "empties the tables": f"DELETE FROM {domain.deeds}; DELETE FROM {things}",
            "makes a view in a table's place": f"CREATE VIEW {things}2 AS SELECT 1",
            "plants a trigger": f"CREATE TRIGGER t AFTER INSERT ON {things} BEGIN DELETE FROM {things}; END",
            "asks for a huge text": "SELECT replace(hex(zeroblob(400000)), '00', 'aaaa')",
            "asks for a huge blob": "SELECT zeroblob(1000000000)",
            "ends the transaction": f"ROLLBACK; DELETE FROM {things}",
            "comments the rest away": "SELECT 1 --",
        }
        return [
            Exploit(name, (sql if sql.startswith("submit") else f"```sql\n{sql}\n```",))
            for name, sql in said.items()
        ]

    def setup(self, task: Task) -> str:
        self._desk = Desk(self.sandbox, task.files[SCRIPT])
        self._submitted: str | None = None
        rows = [
            f"{table}:\n{self._desk.run(f'SELECT * FROM {table} LIMIT 3', write=False).text()}"
            for table in _domain(task).tables()
        ]
        parts = [task.prompt, _domain(task).schema().rstrip(), *rows]
        if self.max_turns > 1:
            parts.append(self.help)
        return "\n\n".join(parts)

    def apply(self, action: str) -> Effect:
        """A call of a tool, or a statement as it is, which is a submission."""
        call = read(action, self.tools)
        if isinstance(call, Call):
            return super().apply(action)
        block = _BLOCK.search(action)
        if block is None and not _STATEMENT.match(action):
            return Effect(call)
        return Effect(self.submit(block[1] if block else action), done=True)

    @tool
    def query(self, sql: str) -> str:
        """Try a statement on the database; changes last until the end of the episode."""
        return self._desk.run(sql, write=bool(self.task.hidden["write"])).text()

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
        scripts = [self.task.files[SCRIPT], *(domain.script(f"{self.visit_seed} {n}") for n in range(FRESH))]
        wanted = self._outcomes(str(self.task.hidden["reference"]), scripts, domain)
        found = self._outcomes(self._submitted, scripts, domain)
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            if isinstance(one, str):
                raise SandboxError(f"task {self.task.id}: the reference fails: {one}")
            place = "the shown database" if number == 0 else f"fresh database {number}"
            if isinstance(other, str):
                return Grade(Verdict.FAIL, f"{place}: {other}", number, len(wanted))
            if not equal(one, other, _NUMBERS):
                said = f"expected {canonical(one)[:300]}, found {canonical(other)[:300]}"
                return Grade(Verdict.FAIL, f"{place}: {said}", number, len(wanted))
        return Grade(Verdict.PASS, f"as the reference on {len(wanted)} databases", len(wanted), len(wanted))

    def _outcomes(self, sql: str, scripts: Sequence[str], domain: Domain) -> list[JSON]:
        """Per database what the statements lead to: rows or tables, or, as text, what is wrong.

        In a sandbox of its own, so that the submission never shares one with the reference.
        """
        write, ordered = bool(self.task.hidden["write"]), bool(self.task.hidden["ordered"])
        found: list[JSON] = []
        with self.backend.create() as sandbox:
            desk = Desk(sandbox, scripts[0])
            for script in scripts:
                desk.load(script)
                result = desk.run(sql, write=write, rows=COMPARED)
                if result.error or (found and isinstance(found[-1], str)):
                    found.append(result.error or "an earlier database has ended it")
                elif write:
                    try:
                        found.append(desk.state(domain.tables()))
                    except PeerGone as gone:
                        found.append(f"the database has ended: {gone.reason}")
                else:
                    found.append(_rows(result, ordered))
            desk.close()
        return found


def _domain(task: Task) -> Domain:
    return BY_NAME[str(task.hidden["domain"])]


def _rows(result: Result, ordered: bool) -> JSON:
    if result.more:
        return f"more than {COMPARED} rows"
    return result.rows if ordered else sorted(result.rows, key=_order)


def _order(row: Sequence[JSON]) -> list[tuple[int, float, str]]:
    return [_key(value) for value in row]


def _key(value: JSON) -> tuple[int, float, str]:
    """Numbers by size, whatever their type, then everything else by its text."""
    if isinstance(value, Mapping) and value.get("t") == "float":
        return 0, float(str(value["v"])), ""
    if isinstance(value, int):
        return 0, float(value), ""
    return 1, 0.0, canonical(value)


def _shown_count(task: Task, domain: Domain) -> int:
    """How many things the shown database holds: the right answer to one question, on one database."""
    things = task.files[SCRIPT].partition(f"INSERT INTO {domain.things} VALUES\n")[2].partition(";")[0]
    return things.count("\n") + 1
