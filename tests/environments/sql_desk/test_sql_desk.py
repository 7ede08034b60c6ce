"""The SQL desk: rewards, allowed statements, and the generated tasks."""

from __future__ import annotations

import dataclasses
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from envkit import EpisodeKey, Outcome, Rollouts, SandboxBackend
from envkit.agents.scripted import ScriptedAgent
from envkit.audit import certificate
from envkit.audit.suite import EnvSuite
from envkit.environments.sql_desk import SqlDeskEnv
from envkit.environments.sql_desk.database import COMPARED_ROWS, Result
from envkit.environments.sql_desk.sqlite import SqliteDatabase
from envkit.environments.sql_desk.tasks import BY_NAME, MOST_NUMBERS, SCRIPT, Asked, Domain, generate
from envkit.errors import BrokenTask
from envkit.sandbox.choice import sandbox_backend

STARTERS = {str(task.metadata["source"]).split()[1]: task for task in generate("starter")}


@pytest.fixture(scope="module")
def backend() -> SandboxBackend:
    return sandbox_backend()


@pytest.fixture(scope="module")
def env(backend: SandboxBackend) -> Iterator[SqlDeskEnv]:
    made = SqlDeskEnv(tasks=[*STARTERS.values()], sandbox=backend)
    yield made
    made.close()


@pytest.fixture(scope="module")
def database(backend: SandboxBackend) -> Iterator[SqliteDatabase]:
    with backend.create() as sandbox:
        made = SqliteDatabase(sandbox, STARTERS["count"].files[SCRIPT])
        yield made
        made.close()


def ending(env: SqlDeskEnv, name: str, *actions: str) -> tuple[float, str]:
    """Return reward and evidence of an episode with these actions."""
    env.reset(seed=4, options={"task": STARTERS[name].id})
    step: Any = None
    for action in actions:
        step = env.step(action)
    assert step[2] or step[3], "the episode has not ended"
    return step[1], step[4]["evidence"]["answers_as_reference"]


# Tasks.


def test_the_request_comes_first_and_last_and_the_example_belongs_to_no_task(backend: SandboxBackend) -> None:
    env = SqlDeskEnv(tasks=[*STARTERS.values()], sandbox=backend, max_turns=3)
    for task in STARTERS.values():
        seen, _ = env.reset(options={"task": task.id})
        assert seen.startswith(f"{task.prompt}\n\n")
        assert seen.endswith(f"\n\nNow: {task.prompt}")
        assert "```sql\nSELECT orbit FROM planets\n```" in seen
    env.close()
    for split in ("train", "heldout"):
        assert not any(
            "planets" in task.files[SCRIPT] or "orbit" in task.files[SCRIPT] for task in generate(split)
        )


def test_tasks_are_reproducible_and_have_four_levels() -> None:
    for split, least in (("train", 300), ("heldout", 240), ("starter", 17)):
        tasks = generate(split)
        assert tasks == generate(split)
        assert len({task.id for task in tasks}) == len(tasks) >= least
        assert {task.metadata["level"] for task in tasks} == {1, 2, 3, 4}
        assert {task.split for task in tasks} == {split}


def test_splits_share_no_table_and_no_column() -> None:
    def names(split: str) -> set[str]:
        domains = {str(task.hidden["domain"]) for task in generate(split)}
        tables = [BY_NAME[domain].tables() for domain in domains]
        return {
            name for found in tables for table, columns in found.items() for name in (table, *columns)
        } - {"id"}

    assert not names("train") & names("heldout")


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_oracle_earns_the_full_reward_and_the_noop_none(backend: SandboxBackend, split: str) -> None:
    tasks = generate(split, per_question=1)
    env = SqlDeskEnv(tasks=tasks, sandbox=backend, max_turns=1)
    for task in tasks:
        for action, earned in ((env.oracle(task)[0], 1.0), (env.noop_action, 0.0)):
            env.reset(seed=1, options={"task": task.id})
            assert env.step(action)[1] == earned, task.id
    env.close()


def test_each_answer_is_right_for_its_own_question_only(backend: SandboxBackend) -> None:
    won: list[tuple[str, str]] = []
    env = SqlDeskEnv(tasks=[*STARTERS.values()], sandbox=backend, max_turns=1)
    for name, task in STARTERS.items():
        for other, said in STARTERS.items():
            env.reset(seed=1, options={"task": task.id})
            if name != other and env.step(env.oracle(said)[0])[1]:
                won.append((name, other))
    env.close()
    assert won == [("names", "sorted")], "the same names, whose order nobody asked for"


# Answers and evidence.


@pytest.mark.parametrize(
    "action",
    [
        "```sql\nSELECT COUNT(*) FROM products\n```",
        "```\nselect count(*) from products;\n```",
        "Here it is:\n```sql\nSELECT COUNT(*) FROM products;\n```\nIt counts.",
        "```sql\nSELECT COUNT(*) FROM products",
        "SELECT COUNT(id) FROM products;",
        "WITH p AS (SELECT * FROM products) SELECT COUNT(*) FROM p",
        "submit('SELECT COUNT(*) FROM products')",
        "submit\n```sql\nSELECT COUNT(*) FROM products\n```",
        "SELECT COUNT(*) * 1.0 FROM products",
        "```sql\nSELECT COUNT(*) FROM products; -- how many\n```",
        "```sql\n-- how many\nSELECT COUNT(*) FROM products; /* that; many */ ;\n```",
        "```sql\nSELECT COUNT(*) /* of ; all */ FROM products; --\n```",
        "```text\nHow many?\n```\nSo the answer is:\n```sql\nSELECT COUNT(*) FROM products\n```",
    ],
)
def test_accepted_spellings(env: SqlDeskEnv, action: str) -> None:
    assert ending(env, "count", action) == (1.0, "as the reference on 5 databases")


def test_queries_can_be_tried_before_answering(env: SqlDeskEnv) -> None:
    seen, _ = env.reset(seed=4, options={"task": STARTERS["count"].id})
    assert "How many products are there?" in seen
    assert "CREATE TABLE products" in seen
    assert "query(sql: str)" in seen
    assert re.search(r"products:\nid \| name \| category \| price\n1 \| ", seen)
    assert env.step("query('SELECT 1 AS one, 2.5 AS half, NULL AS none')")[0].startswith(
        "one | half | none\n1 | 2.5 | NULL\n(1 rows)"
    )
    assert env.step("What shall I do?")[0].startswith("No call of a tool in that.")
    assert env.step("SELECT COUNT(*) FROM products")[1] == 1.0


def test_a_call_with_a_fault_is_told_and_not_taken_for_the_answer(env: SqlDeskEnv) -> None:
    for action in (
        "query(sql=...)\n```sql\nSELECT 1\n```",
        "With two tables I should look first.\nquery(sql='SELECT 1'",
    ):
        env.reset(seed=4, options={"task": STARTERS["count"].id})
        seen, _, terminated, _, _ = env.step(action)
        assert seen.startswith("query: ")
        assert not terminated


@pytest.mark.parametrize(
    ("name", "sql", "evidence"),
    [
        ("count", "SELECT 7", "the shown database: expected "),
        ("count", "SELECT COUNT(*) FROM product", "the shown database: no such table: product"),
        ("count", "", "the shown database: no statement"),
        ("count", "SELECT COUNT(*), 1 FROM products", "the shown database: expected "),
        ("count", "SELECT i.id FROM products i, products j, products k, products l", "the shown database: "),
        ("sorted", "SELECT name FROM products", "the shown database: expected "),
        ("forget", "SELECT 1", "the shown database: expected "),
        ("remove", "DELETE FROM products", "the shown database: FOREIGN KEY constraint failed"),
        ("raise", "UPDATE products SET price = price - 1000", "the shown database: CHECK constraint failed"),
    ],
)
def test_wrong_answers_are_explained(env: SqlDeskEnv, name: str, sql: str, evidence: str) -> None:
    reward, said = ending(env, name, f"```sql\n{sql}\n```")
    assert reward == 0.0
    assert said.startswith(evidence)


def test_an_answer_for_the_shown_database_alone_is_wrong(env: SqlDeskEnv, database: SqliteDatabase) -> None:
    [[count]] = database.run("SELECT COUNT(*) FROM products", write=False).rows
    reward, said = ending(env, "count", f"SELECT {count}")
    assert (reward, said[:14]) == (0.0, "fresh database")


@pytest.mark.parametrize(
    ("name", "sql"),
    [
        ("list-above", "SELECT name FROM products WHERE price >= {bound}"),
        ("list-above", "SELECT name FROM products WHERE price > {bound} + 1"),
        ("sorted", "SELECT name FROM products ORDER BY price DESC"),
        ("sorted", "SELECT name FROM products ORDER BY price DESC, name DESC"),
        ("all", "SELECT * FROM products LIMIT 10"),
        ("all", "SELECT * FROM products LIMIT 1000"),
        ("all", "SELECT * FROM products LIMIT 500 + 500"),
        ("all", "SELECT * FROM products LIMIT 0x3E8"),
        (
            "all",
            "SELECT * FROM products WHERE id < 1e4 -- 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
        ),
        ("all-deeds", "SELECT * FROM orders LIMIT 28"),
        ("all-deeds", "SELECT * FROM orders WHERE id <> 4711"),
        ("all-deeds", "SELECT * FROM orders WHERE quantity < 1000000"),
        ("names", "SELECT name FROM products WHERE id < 11"),
        ("names", "SELECT name FROM products WHERE category IN ('tools', 'toys', 'garden', 'kitchen')"),
        ("count", "SELECT MAX(id) FROM products"),
        ("count", "SELECT COUNT(*) FROM products WHERE price < 60"),
        ("count", "SELECT COUNT(*) FROM products WHERE price <> 37"),
        ("count-kind", "SELECT COUNT(*) FROM products WHERE category LIKE '{kind}%'"),
        ("total", "SELECT SUM(quantity) FROM (SELECT * FROM orders ORDER BY id LIMIT 29)"),
        ("total", "SELECT SUM(quantity) FROM orders WHERE quantity < 10"),
        ("largest", "SELECT MAX(price) FROM products WHERE price < 100"),
        ("none", "SELECT name FROM products WHERE id NOT IN (SELECT product_id FROM orders LIMIT 30)"),
    ],
)
def test_near_misses_never_pass(env: SqlDeskEnv, name: str, sql: str) -> None:
    reference = str(STARTERS[name].hidden["reference"])
    bound, kind = reference.rpartition(" > ")[2], reference.rpartition(" = ")[2].strip("'")
    for seed in range(12):
        env.reset(seed=seed, options={"task": STARTERS[name].id})
        assert env.step(f"```sql\n{sql.format(bound=bound, kind=kind)}\n```")[1] == 0, seed


def rows_of(script: str, table: str) -> list[Any]:
    with closing(sqlite3.connect(":memory:")) as base:
        base.executescript("PRAGMA foreign_keys = ON;" + script)
        return base.execute(f"SELECT * FROM {table}").fetchall()


@pytest.mark.parametrize("domain", BY_NAME.values(), ids=BY_NAME)
@pytest.mark.parametrize("numbers", [(), (20,), (1, 2, 3), (1_000,), (1_500, 999_999_999), range(1, 500)])
@pytest.mark.parametrize("lonely", [False, True])
def test_graded_databases_have_three_sizes_and_the_largest_is_beyond_every_number(
    domain: Domain, numbers: Sequence[int], lonely: bool
) -> None:
    asked = Asked(frozenset([7]), domain.kinds[1], "Ada", lonely)
    scripts = (
        domain.small_script(3),
        domain.medium_script(3, asked),
        domain.large_script(3, asked, numbers),
    )
    counts = [[len(rows_of(script, table)) for table in domain.tables()] for script in scripts]
    assert all(1 <= count <= 4 for count in counts[0])
    assert 6 <= counts[1][0] <= 10
    assert 12 <= counts[1][1] <= 29
    items, events = (rows_of(scripts[2], table) for table in domain.tables())
    known = sorted({*numbers, 7})[-MOST_NUMBERS:]
    beyond = min(sum(known), 1_000)
    assert 64 <= len(items) < len(events) <= COMPARED_ROWS
    busy = {row[1] for row in events}
    # Whatever a request is about, there are more rows than a limit may leave.
    for rows in (
        [row for row in items if row[2] == domain.kinds[1]],
        [row for row in events if row[2] == "Ada"],
        [row for row in items if row[0] not in busy],
    ):
        assert len(rows) > beyond * 0.9
    for number in known:
        for rows, column in ((items, 0), (items, 3), (events, 0), (events, 3)):
            assert {number, number + 1} <= {row[column] for row in rows}
    for rows in (items, events):
        assert max(row[3] for row in rows) > max([*known, 1_000])
        assert max(row[3] for row in rows) < 2**31 - 1_000
        last = max(rows)
        assert [row for row in rows if row[3] >= last[3]] == [last]
    assert max(items)[1] not in domain.names
    assert (max(items)[0] in busy) != lonely
    assert sorted(row[0] for row in items) != [*range(1, len(items) + 1)]


def test_tiny_databases_hold_each_number_in_each_column() -> None:
    domain, asked = BY_NAME["products"], Asked(frozenset(), "toys", "Eve")
    scripts = domain.tiny_scripts(asked, [17, 5 * 10**9, 37])
    assert len(scripts) == 2 * 2 * 2
    found = [rows_of(script, "products")[0] for script in scripts]
    for number in (17, 18, 37, 38):
        for column in (0, 3):
            [row] = [row for row in found if row[column] == number]
            assert row[2] == "toys"
    for script in scripts:
        [[event, item, person, amount]] = rows_of(script, "orders")
        [[product, _, _, size]] = rows_of(script, "products")
        assert (event, item, person, amount) == (product, product, "Eve", size)


def test_scripts_follow_from_their_seed() -> None:
    domain, five, eight = BY_NAME["products"], Asked(frozenset([5])), Asked(frozenset([8]))
    for make in (domain.script, domain.small_script):
        assert make(1) == make(1) != make(2)
    for make in (domain.medium_script, domain.large_script):
        assert make(1, five) == make(1, five) != make(2, five)
        assert make(1, five) != make(1, eight)


def test_members_of_a_group_share_all_but_the_largest_database(env: SqlDeskEnv) -> None:
    env.reset(seed=4, options={"task": STARTERS["count"].id})
    plain, same, limited = (
        env._scripts(sql)  # pyright: ignore[reportPrivateUsage]
        for sql in ("SELECT 'a1', b2.c", "SELECT COUNT(*)", "SELECT 1 LIMIT 77")
    )
    assert plain == same
    (shared, none), (limited_shared, own) = plain, limited
    assert (shared[:4], none) == (limited_shared, [])
    assert shared[4] != own[0]
    assert (len(shared), len(own)) == (5, 1 + 4)


def test_a_submission_is_graded_on_all_databases_in_one_request(
    env: SqlDeskEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = SqliteDatabase.run_on_each

    def noting(database: SqliteDatabase, scripts: Sequence[str], *rest: Any) -> Any:
        asked.append(len(scripts))
        return ask(database, scripts, *rest)

    monkeypatch.setattr(SqliteDatabase, "run_on_each", noting)
    monkeypatch.setattr(SqlDeskEnv, "_reference_outcomes", {})
    assert ending(env, "count", "SELECT COUNT(*) FROM products")[0] == 1.0
    assert asked == [5, 5], "the reference, then the submission"
    assert ending(env, "count", "SELECT COUNT(*) FROM products LIMIT 99")[0] == 1.0
    assert asked[2:] == [5, 9], "the reference on the databases that are new only"


def test_a_submission_that_ends_its_database_fails_wherever_it_did(
    env: SqlDeskEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envkit.environments.sql_desk.sqlite._REQUEST_TIMEOUT_S", 1.0)
    killer = "WITH RECURSIVE n(i) AS (SELECT zeroblob(900000) UNION ALL SELECT zeroblob(900000) FROM n) "
    reward, said = ending(env, "count", f"{killer} SELECT count(*) FROM n ORDER BY i")
    assert reward == 0.0
    assert said.startswith("the database has ended: ") or "too slow" in said


def test_the_order_counts_only_if_requested(env: SqlDeskEnv) -> None:
    for name in ("list-above", "none"):
        reference = str(STARTERS[name].hidden["reference"])
        assert ending(env, name, f"SELECT * FROM ({reference}) ORDER BY 1 DESC")[0] == 1.0
    reference = str(STARTERS["sorted"].hidden["reference"])
    assert ending(env, "sorted", f"SELECT * FROM ({reference}) ORDER BY 1")[0] == 0.0


def test_queries_do_not_affect_the_graded_submission(
    env: SqlDeskEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = STARTERS["forget"]
    said = env.oracle(task)[0]
    assert ending(env, "forget", "query('DELETE FROM orders')", said)[0] == 1.0
    assert ending(env, "forget", f"query\n{said}", "SELECT 1")[0] == 0.0
    monkeypatch.setattr("envkit.environments.sql_desk.sqlite._REQUEST_TIMEOUT_S", 3.0)
    killer = "WITH RECURSIVE n(i) AS (SELECT zeroblob(900000) UNION ALL SELECT zeroblob(900000) FROM n) "
    assert ending(env, "forget", f"query('{killer} SELECT count(*) FROM n ORDER BY i')", said)[0] == 1.0


def test_members_of_a_group_share_the_references_result(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    apart = SqlDeskEnv.reference_database

    def noting(env: SqlDeskEnv, script: str) -> Any:
        asked.append(script)
        return apart(env, script)

    monkeypatch.setattr(SqlDeskEnv, "reference_database", noting)
    monkeypatch.setattr(SqlDeskEnv, "_reference_outcomes", {})
    members = [SqlDeskEnv(tasks=[*STARTERS.values()], sandbox=backend) for _ in range(2)]
    said = members[0].oracle(STARTERS["count"])[0]
    assert [ending(env, "count", said)[0] for env in (*members, members[0])] == [1.0] * 3
    assert len(asked) == 1
    members[0].reset(seed=5, options={"task": STARTERS["count"].id})  # another visit has other databases
    assert members[0].step(said)[1] == 1.0
    assert len(asked) == 2
    for env in members:
        env.close()


def test_a_failing_reference_is_void_and_not_cached(backend: SandboxBackend) -> None:
    task = STARTERS["count"]
    broken = dataclasses.replace(task, hidden={**task.hidden, "reference": "SELECT gone FROM products"})
    env = SqlDeskEnv(tasks=[broken], sandbox=backend)
    for _ in range(2):
        env.reset(seed=1)
        with pytest.raises(BrokenTask, match="the reference fails: no such column: gone"):
            env.step("SELECT 1")
    env.close()
    with Rollouts(lambda: SqlDeskEnv(tasks=[broken], sandbox=backend)) as rollouts:
        agent = ScriptedAgent("asker", lambda key, turn, observation: "SELECT 1")
        (played,) = rollouts.play(agent, [EpisodeKey(0, 0, 0, 0, broken.id)])
    assert played.outcome is Outcome.VOID
    assert "the reference fails" in str(played.info["error"])


def test_a_used_up_turn_budget_earns_no_reward(env: SqlDeskEnv) -> None:
    assert ending(env, "count", *["query('SELECT COUNT(*) FROM products')"] * 3) == (
        0.0,
        "nothing was submitted",
    )


# Allowed statements.


def contents(database: SqliteDatabase) -> list[Result]:
    """Return all rows of the products' database."""
    return [database.run(f"SELECT * FROM {table}", write=False) for table in BY_NAME["products"].tables()]


@pytest.mark.parametrize(
    "sql",
    [
        "ATTACH DATABASE 'x.db' AS x",
        "PRAGMA writable_schema = 1",
        "SELECT load_extension('x')",
        "SELECT readfile('/etc/passwd')",
        "SELECT random()",
        "CREATE TABLE t (i)",
        "DROP TABLE products",
        "CREATE TRIGGER t AFTER INSERT ON products BEGIN SELECT 1; END",
        "BEGIN",
        "ROLLBACK",
        "SAVEPOINT mine",
        "RELEASE request",
        "VACUUM INTO 'x.db'",
        "UPDATE sqlite_master SET sql = ''",
        "SELECT zeroblob(1000000000)",
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "SELECT '" + "x" * 30_000 + "'",
        "SELECT 'never closed; SELECT 1",
        "\x00",
        "SELECT 1; \x00",
        "SELECT strftime('%f', 'now')",
        "SELECT julianday('now')",
        "SELECT CURRENT_TIMESTAMP",
        "SELECT date()",
        "SELECT date('now')",
        "SELECT unixepoch()",
        "SELECT CURRENT_DATE",
        "SELECT changes()",
        "SELECT total_changes()",
        "SELECT last_insert_rowid()",
        "SELECT LAST_INSERT_ROWID()",
        "SELECT sqlite_version()",
        "SELECT sqlite_source_id()",
        "SELECT sqlite_compileoption_get(0)",
        "SELECT * FROM pragma_compile_options",
        "SELECT * FROM pragma_database_list",
    ],
)
def test_statements_may_only_use_the_tables(database: SqliteDatabase, sql: str) -> None:
    database.load(STARTERS["count"].files[SCRIPT])
    assert database.run("DELETE FROM orders WHERE id = 1", write=True).changed
    before = contents(database)
    for write in (False, True):
        assert database.run(sql, write=write).error
    assert contents(database) == before


def test_read_only_statements_cannot_change_data(database: SqliteDatabase) -> None:
    for sql in (
        "DELETE FROM orders",
        "UPDATE products SET price = 0",
        "INSERT INTO orders VALUES (99, 1, 'Ada', 1)",
    ):
        assert database.run(sql, write=False).error == "not authorized"


def test_several_statements_are_one_transaction(database: SqliteDatabase) -> None:
    before = contents(database)
    assert database.run("DELETE FROM orders; DELETE FROM gone", write=True).error == "no such table: gone"
    assert contents(database) == before


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("INSERT OR ROLLBACK INTO products SELECT * FROM products LIMIT 1", "UNIQUE constraint failed"),
        ("UPDATE OR ROLLBACK products SET id = 1", "UNIQUE constraint failed"),
        ("DELETE FROM orders; INSERT OR ROLLBACK INTO products VALUES (NULL, NULL, 1, 1)", "NOT NULL"),
        (
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) "
            "UPDATE products SET price = (SELECT count(*) FROM n)",
            "too slow",
        ),
    ],
)
def test_a_statement_that_ends_the_transaction_changes_nothing_and_keeps_earlier_changes(
    database: SqliteDatabase, sql: str, reason: str
) -> None:
    database.load(STARTERS["count"].files[SCRIPT])
    assert database.run("DELETE FROM orders WHERE id = 1", write=True).changed == 1
    before = contents(database)
    assert reason in database.run(sql, write=True).error
    assert contents(database) == before
    assert database.run("DELETE FROM orders WHERE id = 2", write=True).changed == 1


def test_a_violation_that_shows_at_the_end_of_the_transaction_changes_nothing(
    backend: SandboxBackend,
) -> None:
    script = (
        "CREATE TABLE a (id INTEGER PRIMARY KEY);"
        "CREATE TABLE b (id INTEGER REFERENCES a DEFERRABLE INITIALLY DEFERRED); INSERT INTO a VALUES (1)"
    )
    with backend.create() as sandbox, closing(SqliteDatabase(sandbox, script)) as database:
        assert database.run("INSERT INTO b VALUES (1)", write=True).changed == 1
        assert database.run("INSERT INTO b VALUES (2)", write=True).error == "FOREIGN KEY constraint failed"
        assert database.run("SELECT * FROM b", write=False).rows == [[1]]


def test_run_on_each_uses_fresh_databases_and_stops_at_the_first_error(database: SqliteDatabase) -> None:
    scripts = [BY_NAME["products"].script(seed) for seed in range(3)]
    orders = {"orders": ["id"]}
    found = database.run_on_each([*scripts, scripts[0]], "DELETE FROM orders WHERE id = 1", orders)
    assert [result.changed for result in found] == [1, 1, 1, 1]
    assert found[0].tables == found[3].tables != [[]]
    once = "INSERT INTO products VALUES (99, 'once', 'toys', 1)"
    assert [result.error for result in database.run_on_each([scripts[0]] * 2, once, orders)] == ["", ""]
    counts = [
        database.run_on_each([script], "SELECT COUNT(*) FROM orders", None)[0].rows[0][0]
        for script in scripts
    ]
    only_first = (
        f"SELECT CASE COUNT(*) WHEN {counts[0]} THEN 1 ELSE abs(-9223372036854775808) END FROM orders"
    )
    assert counts[0] != counts[1]
    first, second = database.run_on_each(scripts, only_first, None)
    assert (first.rows, first.error, second.error) == ([[1]], "", "integer overflow")


def test_a_dead_database_is_restored(backend: SandboxBackend) -> None:
    with backend.create() as sandbox:
        database = SqliteDatabase(sandbox, STARTERS["count"].files[SCRIPT])
        assert database.run("DELETE FROM orders", write=True).changed > 0
        assert database._peer is not None  # pyright: ignore[reportPrivateUsage]
        database._peer.close()  # pyright: ignore[reportPrivateUsage]
        assert database.run("SELECT 1", write=False).error.startswith("the database has ended")
        assert database.run("SELECT COUNT(*) FROM orders", write=False).rows[0][0] != 0
        database.close()


# As a whole.


def test_gymnasium_makes_and_accepts_the_environment(backend: SandboxBackend) -> None:
    env = gymnasium.make("envkit/SqlDesk-v3", sandbox=backend, render_mode="ansi")
    check_env(env.unwrapped)
    env.close()


class TestSqlDesk(EnvSuite):
    kind = SqlDeskEnv


def test_the_shipped_certificate_is_valid(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change: envkit audit sql-desk -o environments/sql_desk/certificate.json."""
    monkeypatch.setattr(certificate, "cache_dir", lambda: tmp_path)
    assert certificate.certificate_problem(SqlDeskEnv) == ""
