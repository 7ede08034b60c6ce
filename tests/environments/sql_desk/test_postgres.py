"""The SQL desk on PostgreSQL: rewards, what a statement can reach, and failures of the server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from envkit import SandboxBackend
from envkit.audit import certificate
from envkit.audit.audited_env import AuditedEnv, Coverage
from envkit.audit.fuzz import MAX_STEP_CPU_S, fuzz
from envkit.audit.runner import AUDIT_CHECKS, Finding
from envkit.audit.suite import EnvSuite
from envkit.cli.main import main
from envkit.environments.sql_desk import SqlDeskEnv, SqlDeskPostgresEnv
from envkit.environments.sql_desk.database import COMPARED_ROWS, Result
from envkit.environments.sql_desk.postgres import dsn, server_checks
from envkit.environments.sql_desk.postgres.connection import QueryRefused
from envkit.environments.sql_desk.postgres.database import PostgresDatabase
from envkit.environments.sql_desk.postgres.dsn import DSN_VARIABLE
from envkit.environments.sql_desk.postgres.hardening import STATEMENT_S
from envkit.environments.sql_desk.postgres.server import PostgresServer, server_of
from envkit.environments.sql_desk.tasks import BY_NAME, SCRIPT, generate
from envkit.errors import BrokenTask, MissingExtraError, SandboxError, UsageError
from envkit.measure.report.page import load_report
from envkit.sandbox.choice import sandbox_backend
from envkit.types import Task

STARTERS = {str(task.metadata["source"]).split()[1]: task for task in generate("starter")}
TABLES = BY_NAME["products"].tables()
#: Runs for longer than 1 ms.
SLOW = "SELECT count(*) FROM generate_series(1, 300000)"
OWNER = """
import sys, time
from envkit.environments.sql_desk.postgres.dsn import DSN_VARIABLE
from envkit.environments.sql_desk.postgres.database import PostgresDatabase
from envkit.environments.sql_desk.postgres.server import server_of
from envkit.environments.sql_desk.tasks import SCRIPT, generate
database = PostgresDatabase(server_of(DSN_VARIABLE), generate("starter")[0].files[SCRIPT])
database.run("SELECT 1", write=False)
print(database.name, flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.usefixtures("dsn")


@pytest.fixture(scope="module")
def backend() -> SandboxBackend:
    return sandbox_backend()


@pytest.fixture
def postgres_server(dsn: str) -> PostgresServer:
    return server_of(DSN_VARIABLE)


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[PostgresDatabase]:
    made = PostgresDatabase(postgres_server, STARTERS["count"].files[SCRIPT])
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(dsn: str) -> Iterator[PostgresDatabase]:
    """A database shared by tests that do not change it."""
    made = PostgresDatabase(server_of(DSN_VARIABLE), STARTERS["count"].files[SCRIPT])
    yield made
    made.close()


@pytest.fixture(scope="module")
def env(dsn: str, backend: SandboxBackend) -> Iterator[SqlDeskPostgresEnv]:
    made = SqlDeskPostgresEnv(tasks=[*STARTERS.values()], sandbox=backend)
    yield made
    made.close()


def ending(env: Any, name: str, *actions: str) -> tuple[float, str]:
    """Return reward and evidence of an episode with these actions."""
    env.reset(seed=4, options={"task": STARTERS[name].id})
    step: Any = None
    for action in actions:
        step = env.step(action)
    assert step[2] or step[3], "the episode has not ended"
    return step[1], step[4]["evidence"]["answers_as_reference"]


def block(sql: str) -> str:
    return f"```sql\n{sql}\n```"


# Tasks.


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_oracle_earns_the_full_reward_and_the_noop_none(backend: SandboxBackend, split: str) -> None:
    # Every third task, which covers all 14 questions.
    check_all(backend, generate(split, per_question=1)[::3])


@pytest.mark.nightly
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_oracle_earns_the_full_reward_on_every_task(backend: SandboxBackend, split: str) -> None:
    check_all(backend, generate(split))


def check_all(backend: SandboxBackend, tasks: Sequence[Task]) -> None:
    env = SqlDeskPostgresEnv(tasks=tasks, sandbox=backend, max_turns=1)
    for number, task in enumerate(tasks):
        env.reset(seed=1, options={"task": task.id})
        assert env.step(env.oracle(task)[0])[1] == 1.0, task.id
        if number % 7 == 0 or len(tasks) > 100:
            env.reset(seed=1, options={"task": task.id})
            assert env.step(env.noop_action)[1] == 0.0, task.id
    env.close()


def test_tasks_and_observations_equal_those_of_sqlite(
    env: SqlDeskPostgresEnv, backend: SandboxBackend
) -> None:
    sqlite = SqlDeskEnv(tasks=[*STARTERS.values()], sandbox=backend)
    for split in ("train", "heldout", "starter"):
        made = [k.make_tasks(split, sandbox=backend, display=None) for k in (SqlDeskEnv, SqlDeskPostgresEnv)]  # type: ignore[arg-type]
        assert made[0] == made[1]
    for name in ("count", "remove"):
        options = {"task": STARTERS[name].id}
        assert env.reset(seed=1, options=options) == sqlite.reset(seed=1, options=options)
        action = "query('SELECT * FROM products ORDER BY id')"
        assert env.step(action) == sqlite.step(action)
    sqlite.close()


# Answers and evidence.


@pytest.mark.parametrize(
    ("name", "sql", "earned", "evidence"),
    [
        ("count", "SELECT COUNT(*) FROM products;", 1.0, "as the reference on 5 databases"),
        ("count", "SELECT COUNT(*) * 1.0 FROM products", 1.0, "as the reference"),
        ("count", "WITH p AS (SELECT * FROM products) SELECT COUNT(*) FROM p", 1.0, "as the reference"),
        ("total", "SELECT SUM(quantity)::float8 FROM orders", 1.0, "as the reference"),
        ("count", "SELECT 7", 0.0, "the shown database: expected "),
        (
            "count",
            "SELECT COUNT(*) FROM product",
            0.0,
            'the shown database: relation "product" does not exist',
        ),
        ("count", "SELECT COUNT(*) FROM products) q", 0.0, 'the shown database: syntax error at or near ")"'),
        ("count", "", 0.0, "the shown database: no statement"),
        ("count", "SELECT COUNT(*), 1 FROM products", 0.0, "the shown database: expected "),
        (
            "count",
            "SELECT p.id FROM products p, products q, products r, products s",
            0.0,
            "the shown database: ",
        ),
        ("forget", "SELECT 1", 0.0, "the shown database: expected "),
        (
            "remove",
            "DELETE FROM products",
            0.0,
            'the shown database: update or delete on table "products" viol',
        ),
        (
            "raise",
            "UPDATE products SET price = price - 1000",
            0.0,
            "the shown database: new row for relation ",
        ),
        ("sorted", "SELECT name FROM products", 0.0, "the shown database: expected "),
    ],
)
def test_answers_are_graded(
    env: SqlDeskPostgresEnv, name: str, sql: str, earned: float, evidence: str
) -> None:
    reward, said = ending(env, name, block(sql))
    assert (reward, said[: len(evidence)]) == (earned, evidence)


def test_an_answer_for_the_shown_database_alone_is_wrong(
    env: SqlDeskPostgresEnv, shared: PostgresDatabase
) -> None:
    [[count]] = shared.run("SELECT COUNT(*) FROM products", write=False).rows
    assert ending(env, "count", f"SELECT {count}")[1].startswith("fresh database")


def test_queries_do_not_affect_the_graded_submission(env: SqlDeskPostgresEnv) -> None:
    task = STARTERS["forget"]
    assert ending(env, "forget", f"query\n{block('DELETE FROM orders')}", env.oracle(task)[0])[0] == 1.0
    # Changes made by queries do not count as an answer either.
    tried = f"query\n{env.oracle(task)[0]}"
    assert ending(env, "forget", tried, tried, "SELECT 1")[0] == 0.0


def test_values_of_every_type_are_returned(database: PostgresDatabase) -> None:
    found = database.run(
        "SELECT 1 AS a, 2.50 AS a, 3::float8, NULL, true, 'x', '\\xff'::bytea, ARRAY[1, 2], "
        '\'{"t": "float", "v": "7"}\'::json, \'"\\ud800"\'::json, 1e300::numeric',
        write=False,
    )
    assert found.columns[:3] == ["a", "a", "float8"]
    assert found.rows[0][:8] == [
        *(1, {"t": "float", "v": "2.5"}, 3, None, True, "x", "\\xff", "[1, 2]"),
    ]
    assert not isinstance(
        found.rows[0][8], dict
    )  # JSON that looks like the encoding of a number is not decoded as one
    assert found.rows[0][9] == "?"
    assert "NULL" in found.text()


def test_statements_run_all_or_none(database: PostgresDatabase) -> None:
    before = database.table_rows(TABLES)
    assert (
        database.run("DELETE FROM orders; DELETE FROM gone", write=True).error
        == 'relation "gone" does not exist'
    )
    assert database.table_rows(TABLES) == before
    assert database.run("DELETE FROM orders; DELETE FROM products", write=True).changed > 10
    assert database.table_rows(TABLES) == [[], []]
    database.load(STARTERS["count"].files[SCRIPT])
    assert database.table_rows(TABLES) == before


def test_returned_rows_and_changing_queries(database: PostgresDatabase) -> None:
    found = database.run("UPDATE products SET price = 5 WHERE id = 1 RETURNING id, price", write=True)
    assert (found.columns, found.rows) == (["id", "price"], [[1, 5]])
    sql = "WITH u AS (UPDATE products SET price = 6 WHERE id = 1 RETURNING *) SELECT price FROM u"
    assert database.run(sql, write=True).rows == [[6]]
    assert database.run("SELECT price FROM products WHERE id = 1", write=False).rows == [[6]]


# Refused statements of agents.

#: Filling the memory takes near as long as a statement may: a slow machine reaches that limit first.
MEMORY_OR_TIME = ("out of memory", "too slow: more than 3 s")
ATTACKS: dict[str, tuple[str, str | tuple[str, ...]]] = {
    "reads a server's file": ("SELECT pg_read_file('/etc/passwd')", "permission denied"),
    "lists a server's folder": ("SELECT pg_ls_dir('/')", "permission denied"),
    "copies a file in": ("COPY products FROM '/etc/passwd'", "copy is not allowed"),
    "copies a file out": ("COPY products TO '/tmp/x'", "copy is not allowed"),
    "runs a program": ("COPY products TO PROGRAM 'id'", "copy is not allowed"),
    "hides it behind an allowed one": ("SELECT 1; COPY products TO PROGRAM 'id'", "copy is not allowed"),
    "hides it behind a comment": ("/* /* */ SELECT */ COPY products TO PROGRAM 'id'", "copy is not allowed"),
    "imports a large object": ("SELECT lo_import('/etc/passwd')", "permission denied"),
    "makes a large object": ("SELECT lo_from_bytea(0, 'x')", "permission denied"),
    "reaches another server": (
        "SELECT dblink('host=x', 'SELECT 1')",
        "function dblink(unknown, unknown) does",
    ),
    "makes an extension": ("CREATE EXTENSION dblink", "create is not allowed"),
    "runs a block": ("DO $$ BEGIN END $$", "do is not allowed"),
    "makes a function": (
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "create is not allowed",
    ),
    "makes a table": ("SELECT * INTO mine FROM products", "permission denied"),
    "makes a temporary table": ("SELECT * INTO TEMP mine FROM products", "permission denied"),
    "drops a table": ("DROP TABLE orders", "drop is not allowed"),
    "empties a table": ("TRUNCATE orders", "truncate is not allowed"),
    "locks a table": ("LOCK TABLE products", "lock is not allowed"),
    "grants": ("GRANT ALL ON products TO PUBLIC", "grant is not allowed"),
    "becomes another": ("SET ROLE envkit", "set is not allowed"),
    "takes another's session": ("SET SESSION AUTHORIZATION envkit", "set is not allowed"),
    "lifts the time limit": ("SELECT set_config('statement_timeout', '0', false)", "permission denied"),
    "lifts it for later": ("ALTER ROLE CURRENT_USER SET statement_timeout = 0", "alter is not allowed"),
    "reads settings": ("SELECT current_setting('data_directory')", "permission denied"),
    "shows settings": ("SHOW ALL", "show is not allowed"),
    "asks for the version": ("SELECT version()", "permission denied"),
    "asks who it is": ("SELECT current_user", "current_user is not allowed"),
    "asks who others are": ("SELECT 10::regrole", "regrole is not allowed"),
    "asks who others are, in secret": ("SELECT acldefault('d', 10)::text", "permission denied"),
    "lists databases": ("SELECT datname FROM pg_database", "permission denied"),
    "lists roles": ("SELECT rolname FROM pg_roles", "permission denied"),
    "lists passwords": ("SELECT rolpassword FROM pg_authid", "permission denied"),
    "lists others' statements": ("SELECT query FROM pg_stat_activity", "permission denied"),
    "lists tables": ("SELECT * FROM information_schema.tables", "permission denied"),
    "lists functions": ("SELECT prosrc FROM pg_proc", "permission denied"),
    "reads another database": (
        "SELECT * FROM postgres.public.x",
        "cross-database references are not impleme",
    ),
    "ends another's session": ("SELECT pg_terminate_backend(1)", "permission denied"),
    "sleeps": ("SELECT pg_sleep(60)", "permission denied"),
    "takes an advisory lock": ("SELECT pg_advisory_lock(1)", "permission denied"),
    "notifies": ("SELECT pg_notify('a', 'b')", "permission denied"),
    "listens": ("LISTEN a", "listen is not allowed"),
    "prepares": ("PREPARE p AS SELECT 1", "prepare is not allowed"),
    "keeps a cursor": ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "declare is not allowed"),
    "commits": ("DELETE FROM orders; COMMIT; SELECT 1", "commit is not allowed"),
    "rolls back": ("ROLLBACK", "rollback is not allowed"),
    "prepares a commit": ("PREPARE TRANSACTION 'x'", "prepare is not allowed"),
    "runs a text": ("SELECT query_to_xml('DELETE FROM orders', true, true, '')", "permission denied"),
    "runs a text by our own means": ("SELECT envkit.rows('SHOW ALL', 9)", "envkit is not allowed"),
    "reads a counter": ("SELECT lastval()", "permission denied"),
    "draws at random": ("SELECT random()", "permission denied"),
    "asks for the time": ("SELECT now()", "permission denied"),
    "asks for the time in a word": ("SELECT current_timestamp", "current_timestamp is not allowed"),
    "leaves a parameter out": ("DELETE FROM orders WHERE id = $1", "the server refuses that"),
    "fills the memory": ("SELECT repeat('x', 1000000000)", "out of memory"),
    "fills it in many pieces": (
        "SELECT " + ", ".join(["repeat('x', 100000000)"] * 20) + " FROM products",
        MEMORY_OR_TIME,
    ),
    "fills it by doubling": (
        "WITH RECURSIVE d(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM d) SELECT max(length(s)) FROM d",
        "more than 64 MB of temporary data",
    ),
    "fills the temporary space": (
        "SELECT count(*) FROM (SELECT i, repeat('x', 900) FROM generate_series(1, 999999) i ORDER BY 2, 1) q",
        "more than 64 MB of temporary data",
    ),
    "fills the disk": (
        "INSERT INTO orders SELECT i, 1, 'x', 1 FROM generate_series(1000, 99999) i",
        "more than 10,000 rows written",
    ),
    "fills the disk in few rows": (
        "UPDATE products SET category = repeat('x', 5000000) WHERE id = 1",
        "a row of more than 4,000 bytes",
    ),
    "gives long rows": ("SELECT repeat('x', 300000) FROM products", "more than 1,048,576 bytes of rows"),
    "gives long rows of what it changes": (
        "UPDATE products SET price = 1 RETURNING repeat('x', 300000)",
        "more than 1,048,576 bytes of rows",
    ),
    "nests deep": ("SELECT (repeat('[', 3000) || repeat(']', 3000))::json", "a value that cannot be shown"),
    "gives a number too long to read": ("SELECT repeat('9', 9000)::numeric", "a value that cannot be shown"),
    "never ends": (
        "SELECT count(*) FROM " + ", ".join(f"products p{number}" for number in range(14)),
        "too slow: more than 3 s",
    ),
    "takes long in many steps": (
        ";".join(["SELECT count(*) FROM generate_series(1, 3000000) a"] * 45),
        "too slow: more than 3 s",
    ),
}


#: Statements that tell the time or a transaction's number.
CLOCKS = (
    *(
        "SELECT 'now'::timestamp",
        "SELECT CAST('today' AS date)",
        "SELECT timestamptz 'now'",
        "SELECT time 'now'",
    ),
    *("SELECT ('no' || 'w')::timestamptz", "SELECT '{now}'::timestamp[]", "SELECT '[now,]'::tstzrange"),
    *(
        "SELECT \"timestamp\"('now')",
        "SELECT '(,,,,,,,,now,,,)'::pg_roles",
        "SELECT now()",
        "SELECT localtime",
    ),
    *(
        "SELECT clock_timestamp()",
        "SELECT statement_timestamp()",
        "SELECT timeofday()",
        "SELECT CURRENT_DATE",
    ),
    *(
        "SELECT date_trunc('day', 'now')",
        "SELECT date_part('year', 'now')",
        "SELECT EXTRACT(year FROM 'now')",
    ),
    *("SELECT to_char('now', 'YYYY')", "SELECT 'now' < make_date(2020, 1, 1)", "SELECT age('now')"),
    *("SELECT 'now' > to_timestamp(0)", "SELECT to_date('2020', 'YYYY') - 'now'", "SELECT isfinite('today')"),
    *(
        "SELECT generate_series('now', 'now', '1 day')",
        "SELECT timezone('UTC', 'now')",
        "SELECT 'now' AT TIME ZONE 'UTC'",
    ),
    *(
        "SELECT ('now', 'now') OVERLAPS ('now', 'now')",
        'SELECT * FROM json_to_record(\'{"a": "now"}\') AS x(a date)',
    ),
    *(
        "SELECT xmin FROM products",
        "SELECT max(xmax::text) FROM products",
        "SELECT cmin FROM orders",
        "SELECT ctid FROM orders",
    ),
    *(
        "SELECT p.xmin FROM products p",
        "SELECT tableoid FROM products",
        "SELECT txid_current()",
        "SELECT pg_current_xact_id()",
    ),
    *("SELECT txid_current_if_assigned()", "SELECT txid_current_snapshot()", "SELECT pg_current_snapshot()"),
    *(
        "SELECT age('3'::xid)",
        "SELECT pg_postmaster_start_time()",
        "SELECT pg_backend_pid()",
        "SELECT random()",
    ),
    *("SELECT gen_random_uuid()", "SELECT inet_client_port()", "SELECT currval('envkit.written')"),
)


@pytest.mark.parametrize("sql", CLOCKS)
def test_no_statement_tells_the_time_or_a_transaction(shared: PostgresDatabase, sql: str) -> None:
    """A function of several types is not resolved for an unknown one, such as 'now'."""
    assert re.search("not allowed|permission denied|is not unique", shared.run(sql, write=False).error)
    shared.load(STARTERS["count"].files[SCRIPT])


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(shared: PostgresDatabase, name: str) -> None:
    sql, why = ATTACKS[name]
    before = shared.table_rows(TABLES)
    found = shared.run(sql, write=True)
    assert found.error.startswith(why)
    assert found.error
    # No paths, names or versions, and nothing that differs from server to server.
    assert not re.search(r"/|envkit_|PostgreSQL|\d\d\.\d", found.error), found.error
    assert len(found.error) <= 220
    assert "slow" in str(why) or shared.run(sql, write=True).error == found.error
    shared.load(STARTERS["count"].files[SCRIPT])
    assert shared.table_rows(TABLES) == before


@pytest.mark.parametrize("name", [n for n, (_, why) in ATTACKS.items() if "slow" not in why])
def test_an_attack_earns_no_reward(env: SqlDeskPostgresEnv, name: str) -> None:
    assert ending(env, "forget", block(ATTACKS[name][0]))[0] == 0.0


def test_an_attack_before_a_right_answer_does_not_affect_it(env: SqlDeskPostgresEnv) -> None:
    """A refused statement has no effect on a right answer."""
    for name in ("fills the disk", "fills the memory", "commits", "lifts the time limit"):
        actions = f"query\n{block(ATTACKS[name][0])}", env.oracle(STARTERS["forget"])[0]
        assert ending(env, "forget", *actions)[0] == 1.0


def test_loading_tables_has_a_time_limit_of_its_own(postgres_server: PostgresServer) -> None:
    """On a busy machine, it would take longer than a statement may; a limit of 1 ms stands for that."""
    made = PostgresDatabase(postgres_server, STARTERS["count"].files[SCRIPT], statement_s=0.001)
    with contextlib.closing(made):
        made.load(f"CREATE TABLE slow (n int); INSERT INTO slow {SLOW}")
        assert made.table_rows({"slow": ["n"]}) == [[[300_000]]]
        assert made.run(SLOW, write=False) == Result(error="too slow: more than 0.001 s", transient=True)


def slow_env(backend: SandboxBackend) -> SqlDeskPostgresEnv:
    """An environment whose reference takes longer than 1 ms, and of which no outcome is cached."""
    count = STARTERS["count"]
    return SqlDeskPostgresEnv(
        tasks=[dataclasses.replace(count, id="slow", hidden={**count.hidden, "reference": SLOW})],
        sandbox=backend,
    )


def test_a_reference_has_longer_than_a_submission(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine both are slow; a submission's limit of 1 ms stands for that."""
    monkeypatch.setattr(SqlDeskPostgresEnv, "_reference_outcomes", {})
    monkeypatch.setattr(PostgresDatabase.__init__, "__kwdefaults__", {"statement_s": 0.001})
    with contextlib.closing(slow_env(backend)) as env:
        env.reset(seed=1)
        _, reward, *_, info = env.step(SLOW)
    assert reward == 0.0
    assert info["evidence"]["answers_as_reference"] == "the shown database: too slow: more than 0.001 s"


def test_a_reference_that_is_stopped_as_too_slow_is_no_fault_of_the_task(
    backend: SandboxBackend, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqlDeskPostgresEnv, "_reference_outcomes", {})
    monkeypatch.setattr("envkit.environments.sql_desk.env.TRUSTED_S", 0.001)
    while kept := postgres_server.take():  # made with the limit of before
        kept.close()
    with contextlib.closing(slow_env(backend)) as env:
        env.reset(seed=1)
        with pytest.raises(SandboxError, match="the reference fails: too slow") as caught:
            env.step("SELECT 1")
    assert not isinstance(caught.value, BrokenTask)


def test_no_hostile_action_raises_or_holds_the_host(backend: SandboxBackend) -> None:
    tasks = [*STARTERS.values()]
    found = fuzz(lambda: SqlDeskPostgresEnv(tasks=tasks, sandbox=backend, max_turns=40), tasks, 300, seed=1)
    assert not found.faults, found.faults[0]
    assert found.slowest_cpu_s <= MAX_STEP_CPU_S, found.slowest[:200]


def test_read_only_statements_cannot_change_data(shared: PostgresDatabase) -> None:
    for sql in (
        "DELETE FROM orders",
        "UPDATE products SET price = 0",
        "INSERT INTO orders VALUES (99, 1, 'x', 1)",
    ):
        assert shared.run(sql, write=False).error.endswith("in a read-only transaction")


# Rights of the role, if a statement passed the filter.

UNGUARDED = {
    "COPY products TO '/tmp/x'": "42501",
    "COPY products TO PROGRAM 'id'": "42501",
    "COPY products FROM STDIN": "0A000",
    "CREATE EXTENSION pgcrypto": "42501",
    "CREATE TABLE t (i int)": "42501",
    "CREATE TEMP TABLE t (i int)": "42501",
    "CREATE SCHEMA s": "42501",
    "CREATE FUNCTION desk.f() RETURNS int LANGUAGE sql AS 'SELECT 1'": "42501",
    "CREATE FUNCTION desk.f() RETURNS int LANGUAGE c AS 'x'": "42501",
    "DO $$ BEGIN END $$": "42501",
    "DROP TABLE products": "42501",
    "ALTER TABLE products DISABLE TRIGGER ALL": "42501",
    "SET session_replication_role = replica": "42501",
    "SET temp_file_limit = -1": "42501",
    "SET SESSION AUTHORIZATION envkit": "42501",
    "SET ROLE envkit": "42501",
    "ALTER ROLE CURRENT_USER CREATEDB": "42501",
    "ALTER ROLE envkit PASSWORD 'x'": "42501",
    "CREATE ROLE x": "42501",
    "CREATE DATABASE x": "42501",
    "CHECKPOINT": "42501",
    "LOAD 'auto_explain'": "42501",
    "SHOW data_directory": "42501",
    "SELECT set_config('statement_timeout', '0', false)": "42501",
    "SELECT pg_sleep(60)": "42501",
    "SELECT make_date(2020, 1, 1)": "42501",
    "SELECT to_timestamp(0)": "42501",
    "SELECT 'now' < to_date('2020', 'YYYY')": "42501",
    "SELECT txid_current()": "42501",
    "SELECT pg_advisory_lock(1)": "42501",
    "SELECT pg_notify('a', 'b')": "42501",
    "SELECT lo_create(1)": "42501",
    "SELECT nextval('envkit.written')": "42501",
    "SELECT * FROM pg_database": "42501",
    "SELECT * FROM pg_settings": "42501",
    "SELECT 1; SELECT 2": "42601",
}


@pytest.mark.parametrize("sql", UNGUARDED)
def test_the_role_itself_lacks_the_rights(
    shared: PostgresDatabase, postgres_server: PostgresServer, sql: str
) -> None:
    with contextlib.suppress(QueryRefused):
        shared.run("SELECT 1", write=False)  # opens the role's only connection
    session = shared._role
    assert session is not None
    with pytest.raises(QueryRefused) as refused:
        session.query(sql)
    assert refused.value.state == UNGUARDED[sql]
    if refused.value.state == "0A000":  # the connection waited for data and is closed
        session.close()
        shared._role = None
        time.sleep(0.05)


def test_only_harmless_functions_can_be_called(
    postgres_server: PostgresServer, database: PostgresDatabase
) -> None:
    with contextlib.closing(postgres_server._dsn.connect(database.name)) as admin:
        volatile = admin.query(
            "SELECT proname FROM pg_proc "
            "WHERE provolatile = 'v' AND has_function_privilege($1::name, oid, 'EXECUTE')",
            database.name,
        )
        tables = admin.query(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'v', 'm', 'f', 'p') "
            "AND relnamespace <> 'pg_toast'::regnamespace AND has_table_privilege($1::name, oid, 'SELECT') "
            "ORDER BY 1",
            database.name,
        )
        own = admin.query(
            "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls OR rolinherit,"
            "rolconnlimit, (SELECT count(*) FROM pg_auth_members WHERE member = r.oid) "
            "FROM pg_roles r WHERE rolname = $1",
            database.name,
        )
    assert volatile == [["rows"]]  # it has the caller's rights
    assert tables == [["orders"], ["products"]]
    assert own == [["f", "1", "0"]]


def test_a_role_has_one_connection_to_one_database(
    postgres_server: PostgresServer, database: PostgresDatabase
) -> None:
    other = PostgresDatabase(postgres_server, STARTERS["count"].files[SCRIPT])
    database.run("SELECT 1", write=False)
    for name in (other.name, "postgres", "template1", postgres_server._template):
        with pytest.raises(
            SandboxError, match=r"permission denied|not currently accepting|too many connections"
        ):
            postgres_server._dsn.connect_as(database.name, name, statement_s=1)
    with pytest.raises(SandboxError, match="too many connections"):
        postgres_server.connect_as_role(database.name, statement_s=1)
    other.close()


# Isolation between episodes and references.


def test_a_hostile_episode_does_not_reach_another(
    postgres_server: PostgresServer, database: PostgresDatabase
) -> None:
    hostile = PostgresDatabase(postgres_server, STARTERS["count"].files[SCRIPT])
    before, seen = database.table_rows(TABLES), list[Result]()

    def rage() -> None:
        for name in (
            "fills the memory",
            "fills the temporary space",
            "fills the disk",
            "takes long in many steps",
        ):
            seen.append(hostile.run(ATTACKS[name][0], write=True))
        hostile.run("DELETE FROM orders; DELETE FROM products", write=True)

    rampage = threading.Thread(target=rage)
    rampage.start()
    answers = 0
    while rampage.is_alive() or not answers:
        assert database.run("SELECT COUNT(*) FROM products", write=False).error == ""
        answers += 1
    rampage.join()
    hostile.close()
    assert all(result.error for result in seen)
    assert len(seen) == 4
    assert database.table_rows(TABLES) == before


def test_references_do_not_run_in_agents_databases(
    env: SqlDeskPostgresEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, str]] = []
    run = PostgresDatabase.run

    def noting(database: PostgresDatabase, sql: str, **options: Any) -> Result:
        ran.append((database.name, sql))
        return run(database, sql, **options)

    monkeypatch.setattr(PostgresDatabase, "run", noting)
    monkeypatch.setattr(SqlDeskPostgresEnv, "_reference_outcomes", {})
    reference = str(STARTERS["forget"].hidden["reference"])
    env.reset(seed=11, options={"task": STARTERS["forget"].id})
    mine = env.database.name  # type: ignore[attr-defined]
    assert env.step(block("DELETE FROM orders"))[1] == 0.0
    there = {name for name, sql in ran if sql == reference}
    assert there
    assert mine not in there


def test_an_episodes_database_and_role_are_dropped(
    env: SqlDeskPostgresEnv, cluster: Any, postgres_server: PostgresServer
) -> None:
    env.reset(seed=1)
    name = env.database.name  # type: ignore[attr-defined]
    databases = f"SELECT datname FROM pg_database WHERE datname = '{name}'"
    there = f"{databases} UNION ALL SELECT rolname FROM pg_roles WHERE rolname = '{name}'"
    assert cluster.ask(there) == [(name,), (name,)]
    env.reset(seed=2)
    assert cluster.ask(there) == []
    env.close()
    assert not [n for (n,) in cluster.ask("SELECT datname FROM pg_database") if n == name]


# Failures.


def backend_of(cluster: Any, database: str, role: str) -> int:
    [(pid,)] = cluster.ask(
        f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}' AND usename = '{role}'"
    )
    return pid


@pytest.mark.parametrize("who", ["agent", "owner"])
def test_a_killed_connection_voids_only_its_own_episode(
    env: SqlDeskPostgresEnv, cluster: Any, postgres_server: PostgresServer, who: str
) -> None:
    env.reset(seed=1, options={"task": STARTERS["forget"].id})
    env.step("query('SELECT 1')")
    name = env.database.name  # type: ignore[attr-defined]
    pid = backend_of(cluster, name, name if who == "agent" else postgres_server._owner)
    cluster.ask(f"SELECT pg_terminate_backend({pid}, 5000)")
    with pytest.raises(SandboxError, match="has ended the connection"):
        env.step(env.oracle(STARTERS["forget"])[0])
    assert ending(env, "forget", env.oracle(STARTERS["forget"])[0])[0] == 1.0


def test_a_statement_that_ignores_its_limit_is_a_failure(
    env: SqlDeskPostgresEnv, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One backend process of the server hangs, while the server answers."""
    monkeypatch.setattr(dsn, "_GRACE_S", 0.5 - STATEMENT_S)
    env.reset(seed=1, options={"task": STARTERS["forget"].id})
    env.step("query('SELECT 1')")
    name = env.database.name  # type: ignore[attr-defined]
    pid = backend_of(cluster, name, name)
    os.kill(pid, signal.SIGSTOP)
    try:
        seen = env.step("query('SELECT 1')")[0]
        assert seen == "Error: the database has ended: too slow: more than 3 s"
        found = env.step(env.oracle(STARTERS["forget"])[0])
        assert (found[1], found[4]["verdict"]) == (0.0, "FAIL")
    finally:
        os.kill(pid, signal.SIGCONT)
    for _ in range(200):  # closing another database later cleans up
        env.reset(seed=2)
        env.close()
        if (name,) not in cluster.ask("SELECT datname FROM pg_database"):
            break
    else:
        raise AssertionError("the database is still there")


def test_a_stopped_server_makes_episodes_void_until_it_restarts(
    new_cluster: Any, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = new_cluster()
    monkeypatch.setenv("OTHER_DSN", own.dsn)
    env = SqlDeskPostgresEnv(tasks=[*STARTERS.values()], sandbox=backend, dsn_variable="OTHER_DSN")
    oracle = env.oracle(STARTERS["count"])[0]
    assert ending(env, "count", oracle)[0] == 1.0
    env.reset(seed=4, options={"task": STARTERS["count"].id})
    own.stop()
    with pytest.raises(
        SandboxError, match=r"PostgreSQL server has ended the connection.*is it still running"
    ):
        env.step(oracle)
    with pytest.raises(SandboxError, match=r"cannot connect to PostgreSQL.*OTHER_DSN names the server"):
        env.reset(seed=4)
    with pytest.raises(UsageError, match=r"cannot connect to PostgreSQL.*OTHER_DSN"):
        SqlDeskPostgresEnv(tasks=[*STARTERS.values()], sandbox=backend, dsn_variable="OTHER_DSN")
    own.start()
    assert ending(env, "count", oracle)[0] == 1.0
    env.close()
    left = own.ask("SELECT datname FROM pg_database WHERE datname LIKE 'envkit%'")
    stem = server_of("OTHER_DSN")._prefix
    assert all(name.startswith(stem) for (name,) in left)  # leftovers of the crash are gone


def leased(cluster: Any, name: str) -> list[str]:
    """Return the databases and roles of the process that made this database."""
    stem = name.rpartition("_")[0]
    names = cluster.ask("SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles")
    return [each for (each,) in names if each.startswith(stem)]


def test_nothing_survives_a_killed_owner(dsn: str, cluster: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        try:
            name = owner.stdout.readline().strip()
            with contextlib.closing(PostgresServer(DSN_VARIABLE)):
                assert len(leased(cluster, name)) == 4  # its owner is alive: template, owner, database, role
        finally:
            owner.kill()
    for _ in range(100):  # the server notices the dead owner after a moment
        with contextlib.closing(PostgresServer(DSN_VARIABLE)):
            if not leased(cluster, name):
                break
        time.sleep(0.05)
    assert leased(cluster, name) == []


def test_a_process_leaves_no_database_behind(dsn: str, cluster: Any) -> None:
    code = OWNER.replace("time.sleep(600)", "")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert leased(cluster, done.stdout.strip()) == []


# Connecting.


def test_no_password_in_a_log_or_an_error(
    dsn: str, cluster: Any, postgres_server: PostgresServer, database: PostgresDatabase
) -> None:
    database.run("SELECT 1", write=False)
    password = postgres_server._dsn._password
    assert "CREATE ROLE" in cluster.log  # all statements are logged
    assert password not in cluster.log
    assert password not in repr((postgres_server, database, postgres_server._lease, vars(database)))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "SOME_DSN is not set; expected the connection string"),
        ("hunter2", "SOME_DSN holds no connection string"),
        ("postgresql://u:hunter2@[::1", "SOME_DSN holds no connection string"),
        (
            "postgresql://u:hunter2@127.0.0.1:1/x",
            "cannot connect to PostgreSQL: .*Connection refused.*SOME_DSN",
        ),
        ("host=/nowhere user=u password=hunter2", "cannot connect to PostgreSQL: .*No such file.*SOME_DSN"),
    ],
)
def test_an_unreachable_server_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, text: str | None, why: str
) -> None:
    if text is not None:
        monkeypatch.setenv("SOME_DSN", text)
    with pytest.raises(UsageError, match=why) as error:
        server_of("SOME_DSN")
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_password_is_reported(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DSN", dsn.replace("hush-hush", "hunter2"))
    with pytest.raises(UsageError, match='password authentication failed for user "envkit"') as error:
        server_of("SOME_DSN")
    assert "hunter2" not in str(error.value)


def test_a_server_that_cannot_confine_statements_is_refused(
    cluster: Any, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.ask("CREATE ROLE weak LOGIN CREATEDB CREATEROLE PASSWORD 'weak'")
    cluster.ask("GRANT CONNECT ON DATABASE postgres TO weak")
    monkeypatch.setenv("SOME_DSN", dsn.replace("user=envkit password=hush-hush", "user=weak password=weak"))
    with pytest.raises(UsageError, match="role weak is no superuser"):
        server_of("SOME_DSN")
    cluster.ask("REVOKE CONNECT ON DATABASE postgres FROM weak")
    cluster.ask("DROP ROLE weak")
    monkeypatch.setenv("SOME_DSN", dsn + " application_name=another")
    cluster.ask('CREATE DATABASE "An open one"')
    with pytest.raises(
        UsageError, match='connect to "An open one"; run: REVOKE CONNECT ON DATABASE "An open'
    ):
        server_of("SOME_DSN")
    cluster.ask('DROP DATABASE "An open one"')
    monkeypatch.setattr(server_checks, "MEMORY_BYTES", 2**20)
    with pytest.raises(
        UsageError, match=r"lets a statement allocate 1 MB; expected a limit: start it under `ulim"
    ):
        server_of("SOME_DSN")
    monkeypatch.setattr(server_checks, "MIN_VERSION", 990_000)
    with pytest.raises(UsageError, match="expected 99 or later"):
        server_of("SOME_DSN")


def test_missing_psycopg_names_the_extra(backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DSN", "host=/nowhere")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"\.\[postgres\]"):
        SqlDeskPostgresEnv(tasks=[*STARTERS.values()], sandbox=backend, dsn_variable="SOME_DSN")
    assert SqlDeskPostgresEnv.make_tasks("starter", sandbox=backend, display=None)  # type: ignore[arg-type]


# As a whole.


def test_gymnasium_makes_and_accepts_it(backend: SandboxBackend) -> None:
    env = gymnasium.make("envkit/SqlDeskPostgres-v3", sandbox=backend, render_mode="ansi")
    check_env(env.unwrapped)
    env.close()


#: Checks that play many episodes of what `SqlDeskEnv`, whose suite plays them in every run, has in common.
MANY_EPISODES = (
    "a check that fails earns nothing",
    "a fresh process plays the same",
    "bent actions raise nothing",
    "claims and padding earn nothing",
    "many episodes change nothing",
    "verdicts are right",
)


class TestSqlDeskPostgres(EnvSuite):
    kind = SqlDeskPostgresEnv

    @pytest.mark.parametrize(
        "check",
        [
            pytest.param(name, marks=pytest.mark.nightly if name in MANY_EPISODES else ())
            for name in AUDIT_CHECKS
        ],
    )
    def test_audit(self, audited: AuditedEnv, check: str) -> None:
        super().test_audit(audited, check)


def test_certificate_and_report_show_external_isolation(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (SqlDeskEnv.isolation, SqlDeskPostgresEnv.isolation) == ("sandbox", "external")
    made = certificate.Certificate(
        environment="a",
        digest="d",
        digest_scheme="s",
        created="2026-01-01",
        sandbox="zygote",
        tasks=1,
        tasks_digest="t",
        standard=True,
        coverage=Coverage(1, 1, (1, 1), {}),
        findings=[Finding("c", True, "")],
        isolation="external",
    )
    certificate.write(made, tmp_path / "c.json")
    assert certificate.read(tmp_path / "c.json") == made
    assert "isolation external" in (tmp_path / "c.md").read_text()
    unsaid = json.loads(made.to_json())
    del unsaid["isolation"]
    (tmp_path / "old.json").write_text(json.dumps(unsaid))
    assert certificate.read(tmp_path / "old.json").isolation == "sandbox"

    words = ["bench", "--env", "sql-desk-postgres", "--agent", "oracle", "--samples", "1", "--limit", "2"]
    monkeypatch.setattr(sys, "argv", ["envkit", *words, "--root", str(tmp_path / "runs"), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    report = next((tmp_path / "runs").rglob("report.json"))
    assert load_report(report.parent).isolation == "external"
    text = report.with_name("report.html").read_text()
    assert "isolation: external" in text


def test_the_sqlite_certificate_is_not_used_for_postgres(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "cache_dir", lambda: tmp_path)
    assert certificate.certificate_problem(SqlDeskPostgresEnv) == "it was never audited"


def test_an_answer_with_too_many_rows_is_wrong(env: SqlDeskPostgresEnv, database: PostgresDatabase) -> None:
    sql = f"SELECT i FROM generate_series(1, {COMPARED_ROWS + 1}) i"
    assert ending(env, "count", block(sql)) == (0.0, f"the shown database: more than {COMPARED_ROWS} rows")
    fill = f"INSERT INTO orders SELECT i, 1, 'x', 1 FROM generate_series(1000, {1000 + COMPARED_ROWS}) i"
    assert database.run(fill, write=True).changed == COMPARED_ROWS + 1
    assert database.table_rows(TABLES) == f"orders: more than {COMPARED_ROWS:,} rows"
