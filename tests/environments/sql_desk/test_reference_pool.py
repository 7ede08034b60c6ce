"""The reference pool: databases are reused for references, but not after an error."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from envkit import Sandbox, SandboxBackend
from envkit.environments.sql_desk import SqlDeskEnv, reference_pool
from envkit.environments.sql_desk.reference_pool import ReferencePool
from envkit.environments.sql_desk.sqlite import SqliteDatabase
from envkit.environments.sql_desk.tasks import SCRIPT, generate
from envkit.errors import SandboxError
from envkit.sandbox.choice import sandbox_backend
from envkit.types import Task

STARTERS = {str(task.metadata["source"]).split()[1]: task for task in generate("starter")}
SHOWN = STARTERS["count"].files[SCRIPT]
COUNT = "SELECT COUNT(*) FROM products"


class CountingBackend(SandboxBackend):
    """Wraps the default backend and records its open sandboxes."""

    def __init__(self) -> None:
        self._inner = sandbox_backend()
        self.name, self.isolated = self._inner.name, self._inner.isolated
        self.open: list[Sandbox] = []
        self.made = 0

    def available(self) -> str | None:
        return self._inner.available()

    def create(self) -> Sandbox:
        sandbox: Any = self._inner.create()
        close = sandbox.close

        def close_and_count() -> None:
            if sandbox in self.open:
                self.open.remove(sandbox)
            close()

        sandbox.close = close_and_count
        self.made += 1
        self.open.append(sandbox)
        return sandbox


@pytest.fixture
def backend() -> CountingBackend:
    return CountingBackend()


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReferencePool]:
    """A reference pool of this test alone."""
    made = ReferencePool()
    monkeypatch.setattr(SqlDeskEnv, "_references", made)
    monkeypatch.setattr(SqlDeskEnv, "_reference_outcomes", {})
    yield made
    made.close()


def ending(env: SqlDeskEnv, task: Task, seed: int) -> float:
    """Return the oracle's reward."""
    env.reset(seed=seed, options={"task": task.id})
    return env.step(env.oracle(task)[0])[1]


def processes(database: Any) -> Any:
    return database._peer


def test_one_database_serves_many_references(backend: CountingBackend) -> None:
    env = SqlDeskEnv(tasks=[*STARTERS.values()], sandbox=backend)
    for seed, task in enumerate(STARTERS.values()):
        assert ending(env, task, seed) == 1.0
    assert backend.made == len(STARTERS) + 1
    assert len(backend.open) == 1
    env.close()
    env.dispose()
    assert backend.open == []
    assert ending(env, STARTERS["count"], 99) == 1.0  # the pool can be used again after dispose
    env.dispose()


def test_references_and_agents_use_different_databases(backend: CountingBackend, pool: ReferencePool) -> None:
    env = SqlDeskEnv(tasks=[STARTERS["forget"]], sandbox=backend, max_turns=2)
    for seed in (1, 2):
        env.reset(seed=seed)
        env.step("query('DELETE FROM orders; DELETE FROM products')")
        own = env.sandbox
        assert env.step("SELECT 1")[1] == 0.0
        assert own not in backend.open
        [other] = backend.open
        assert other is not own
    with pool.open(backend, SHOWN) as database:
        assert database.run(COUNT, write=False).rows[0][0] > 0
        assert database.run("SELECT COUNT(*) FROM orders", write=False).rows[0][0] > 0


def test_the_next_reference_gets_a_fresh_database(backend: CountingBackend, pool: ReferencePool) -> None:
    with pool.open(backend, SHOWN) as database:
        assert database.run("DELETE FROM orders", write=True).changed > 0
    with pool.open(backend, SHOWN) as again:
        assert again is database
        assert again.run("SELECT COUNT(*) FROM orders", write=False).rows[0][0] > 0


def test_a_dead_pooled_database_is_replaced(backend: CountingBackend, pool: ReferencePool) -> None:
    env = SqlDeskEnv(tasks=[STARTERS["count"]], sandbox=backend)
    assert ending(env, STARTERS["count"], 1) == 1.0
    with pool.open(backend, SHOWN) as database:
        processes(database).close()  # as a time limit would
    assert ending(env, STARTERS["count"], 2) == 1.0
    with pool.open(backend, SHOWN) as other:
        assert other is not database
    assert len(backend.open) == 1
    env.close()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("SELECT gone FROM products", "no such column: gone"),
        ("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n", "too slow"),
        ("SELECT i.id FROM products i, products j, products k, products l", "more than 5000 rows"),
    ],
)
def test_a_failing_reference_is_void_and_the_next_episode_works(
    backend: CountingBackend, reference: str, message: str
) -> None:
    good = STARTERS["count"]
    bad = dataclasses.replace(good, id="bad", hidden={**good.hidden, "reference": reference})
    env = SqlDeskEnv(tasks=[good, bad], sandbox=backend)
    assert ending(env, good, 1) == 1.0
    env.reset(seed=2, options={"task": "bad"})
    with pytest.raises(SandboxError, match=f"task bad: the reference fails: .*{message}"):
        env.step("SELECT 1")
    assert backend.open == []
    assert ending(env, good, 2) == 1.0
    env.close()


def test_a_hanging_reference_is_void_and_the_next_episode_works(
    backend: CountingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = STARTERS["count"]
    # A single long function call, which the step limit does not stop.
    hanging = "SELECT instr(hex(zeroblob(450000)), substr(hex(zeroblob(450000)), 1, 440000) || '1')"
    bad = dataclasses.replace(good, id="bad", hidden={**good.hidden, "reference": hanging})
    env = SqlDeskEnv(tasks=[good, bad], sandbox=backend)
    env.reset(seed=2, options={"task": "bad"})
    with monkeypatch.context() as patched:
        patched.setattr("envkit.environments.sql_desk.sqlite._REQUEST_TIMEOUT_S", 0.5)  # per database
        with pytest.raises(SandboxError, match=r"the reference fails: .* did not answer within 2\.5 s"):
            env.step("SELECT 1")
    assert backend.open == []
    assert ending(env, good, 2) == 1.0
    env.close()


def test_a_failing_script_raises_a_sandbox_error(backend: CountingBackend, pool: ReferencePool) -> None:
    with backend.create() as sandbox:
        database = SqliteDatabase(sandbox, SHOWN)
        database.load(SHOWN)
        for tables in (None, {"products": ["id"]}):
            with pytest.raises(SandboxError, match='could not be loaded: near "MAKE": syntax error'):
                database.run_on_each([SHOWN, "MAKE TABLE t (i)"], "SELECT 1", tables)
        assert database.run_on_each([SHOWN], COUNT, None)[0].rows[0][0] > 0
    with pytest.raises(SandboxError, match="could not be loaded"), pool.open(backend, "MAKE") as database:
        database.run(COUNT, write=False)
    assert backend.open == []


def test_at_most_two_idle_databases_are_kept_and_only_for_their_backend(
    backend: CountingBackend, pool: ReferencePool
) -> None:
    with pool.open(backend, SHOWN) as one, pool.open(backend, SHOWN) as two, pool.open(backend, SHOWN):
        assert one is not two
        assert backend.made == 3
    assert len(backend.open) == reference_pool.MAX_IDLE == 2
    other = CountingBackend()
    with pool.open(other, SHOWN):
        assert other.made == 1
    assert (len(backend.open), len(other.open)) == (1, 1)
    pool.close()
    assert (backend.open, other.open) == ([], [])


def test_a_forked_process_does_not_use_its_parents_databases(
    backend: CountingBackend, pool: ReferencePool
) -> None:
    with pool.open(backend, SHOWN) as database:
        pass
    child = os.fork()
    if child == 0:
        os._exit(0 if pool._own_idle() == [] else 1)  # pyright: ignore[reportPrivateUsage]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pool.open(backend, SHOWN) as again:
        assert again is database


def test_a_process_without_close_exits_without_output() -> None:
    program = (
        "from envkit.environments.sql_desk import SqlDeskEnv\n"
        "from envkit.environments.sql_desk.tasks import generate\n"
        "from envkit.sandbox.choice import sandbox_backend\n"
        "env = SqlDeskEnv(tasks=generate('starter'), sandbox=sandbox_backend())\n"
        "_, info = env.reset(seed=1)\n"
        "print(env.step(env.oracle(env.task)[0])[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1.0\n", "")
