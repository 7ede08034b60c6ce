"""Measure how many almost right answers the SQL desk accepts, and what a grade costs.

Near misses are made by rules from the reference of every question of every domain: a row limit, a bound on
an id, a size or an amount, a lost or weakened condition, another aggregate, another order. One counts as
wrong if it differs from the reference on one of `JUDGES` databases, which are made here, by other rules than
the grader's, and have up to 1,500 rows. Right answers in other words must be accepted.

Usage: sql.py [VISITS], the number of seeds for each near miss. Writes ``runs/bench/sql.json``. Exits 1 if too
many are accepted.
"""

from __future__ import annotations

import json
import random
import re
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from envkit.environments.sql_desk import SqlDeskEnv
from envkit.environments.sql_desk.tasks import BY_NAME, Domain, generate
from envkit.registry import sandbox_backend
from envkit.types import Task

JUDGES: Final = 24
#: Largest share of wrong answers that may be accepted.
MAX_ACCEPTED: Final = 0.001
#: Limits and bounds that a wrong answer may state; four of them are tried on each question.
LIMITS: Final = (5, 6, 10, 11, 20, 28, 29, 30, 50, 100, 1_000)
_AGGREGATE: Final = re.compile(r"\b(COUNT|SUM|MAX)\(([^)]*)\)")


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A statement that may differ from the reference; ``rule`` names how it was made."""

    rule: str
    sql: str


def near_misses(task: Task, domain: Domain) -> Iterator[NearMiss]:
    """Apply every rule to a task's reference. Some results may be right."""
    reference = str(task.hidden["reference"])
    parts = reference.split("; ")
    last, before = parts[-1], "".join(f"{part}; " for part in parts[:-1])
    items, size, amount = domain.items, domain.size, domain.amount
    table = domain.events if re.search(rf"\b{domain.events}\b", last) else items
    number = amount if table == domain.events else size
    tail = re.search(r" (?:GROUP BY|ORDER BY) .*$", last)
    body, end = (last[: tail.start()], tail[0]) if tail else (last, "")
    limits = random.Random(task.id).sample(LIMITS, 4)
    joint = " AND " if " WHERE " in body else " WHERE "

    def narrowed(condition: str) -> str:
        return f"{before}{body}{joint}{condition}{end}"

    if reference.startswith("SELECT"):
        for limit in limits:
            yield NearMiss("row limit", f"{reference} LIMIT {limit}")
            source = f"(SELECT * FROM {table} LIMIT {limit}) {table}"
            yield NearMiss(
                "row limit inside", re.sub(rf"\bFROM {table}\b", f"FROM {source}", reference, count=1)
            )
        yield NearMiss("offset", f"{reference} LIMIT -1 OFFSET 1")
        if "DISTINCT" in reference:
            yield NearMiss("not distinct", reference.replace("DISTINCT ", ""))
        else:
            yield NearMiss("distinct", reference.replace("SELECT ", "SELECT DISTINCT ", 1))
    for limit in limits:
        yield NearMiss("bound on an id", narrowed(f"{table}.id < {limit}"))
        yield NearMiss("bound on a number", narrowed(f"{number} < {limit}"))
    yield NearMiss("bound on an id", narrowed(f"{table}.id BETWEEN 1 AND 10"))
    yield NearMiss("bound on a number", narrowed(f"{number} BETWEEN 0 AND 60"))
    yield NearMiss("one row left out", narrowed(f"{table}.id <> 17"))
    yield NearMiss("one row left out", narrowed(f"{number} <> 37"))
    yield NearMiss("known kinds only", narrowed(f"{items}.{domain.kind} IN {domain.kinds}"))
    yield NearMiss("known names only", narrowed(f"{items}.{domain.name} IN {domain.names}"))
    if " WHERE " in reference:
        yield NearMiss("condition lost", re.sub(r" WHERE .*?(?=;| GROUP| ORDER|$)", "", reference, count=1))
        yield NearMiss("negated", reference.replace(" WHERE ", " WHERE NOT ", 1))
    for kind in domain.kinds:
        if f"= '{kind}'" in reference:
            yield NearMiss("pattern for equal", reference.replace(f"= '{kind}'", f"LIKE '{kind}%'"))
            yield NearMiss("pattern for equal", reference.replace(f"= '{kind}'", f"LIKE '%{kind}%'"))
    for bound in re.findall(r" > (\d+)", reference):
        for other in (
            f">= {bound}",
            f"> {int(bound) + 1}",
            f"> {int(bound) - 1}",
            f"BETWEEN {int(bound) + 1} AND 59",
        ):
            yield NearMiss("another bound", reference.replace(f"> {bound}", other))
    for name, inside in _AGGREGATE.findall(reference):
        old, column = f"{name}({inside})", inside.replace("*", "id")
        others = (
            f"MAX({column})",
            f"MIN({column})",
            f"COUNT(DISTINCT {number})",
            f"SUM(DISTINCT {number})",
            "10",
        )
        for new in others:
            yield NearMiss("another aggregate", reference.replace(old, new))
    if " ORDER BY " in reference:
        order = reference.partition(" ORDER BY ")[2]
        for new in (
            f"{size} DESC",
            f"{size}, {domain.name}",
            f"{size} DESC, id",
            f"{domain.name}, {size} DESC",
            "id",
        ):
            yield NearMiss("another order", reference.replace(order, new))
    if f" {items} JOIN " in reference:
        yield NearMiss("another join", reference.replace(" JOIN ", " LEFT JOIN "))
        yield NearMiss("another join", reference.replace(" ON ", " ON 1 OR "))
    if len(parts) > 1:
        yield NearMiss("half of the work", parts[0])
    for step in re.findall(rf"{size} \+ (\d+)", reference):
        yield NearMiss("another step", reference.replace(f"+ {step}", f"+ {int(step) + 1}"))


def right_answers(task: Task, domain: Domain) -> Iterator[str]:
    """Write a reference in other words."""
    reference = str(task.hidden["reference"])
    yield f"{reference};"
    yield f"-- the answer\n{reference}"
    if reference.startswith("SELECT"):
        if not task.hidden["ordered"]:
            yield f"SELECT * FROM ({reference}) ORDER BY 1 DESC"
        yield (
            f"WITH answer AS ({reference}) SELECT * FROM answer" if not task.hidden["ordered"] else reference
        )
        yield reference.replace("COUNT(*)", "COUNT(id)") if "JOIN" not in reference else reference
    yield reference.replace(" WHERE ", " WHERE 1 = 1 AND ")
    yield re.sub(r"> (\d+)", lambda found: f">= {int(found[1]) + 1}", reference)


def judge_script(domain: Domain, seed: int) -> str:
    """A database within the schema, unlike the grader's: any names, kinds, people, ids and numbers."""
    draw = random.Random(f"judge {domain.items} {seed}")
    count = draw.choice((1, 3, 9, 40, 200, 1_500))
    widest = draw.choice((2, 12, 60, 1_000, 100_000))
    ids = draw.sample(range(1, count * draw.choice((1, 3)) + 1), count)
    kinds = [*domain.kinds, *(f"{kind} {draw.randrange(9)}" for kind in domain.kinds)]
    names = [*domain.names, *(f"thing {number}" for number in range(count))]
    people = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jo", "Kim", "Adam"]
    items = [
        (i, name, draw.choice(kinds), draw.randrange(widest))
        for i, name in zip(ids, draw.sample(names, count), strict=True)
    ]
    busy = draw.sample(ids, max(count * 2 // 3, 1))
    events = [
        (i, draw.choice(busy), draw.choice(people), draw.randrange(1, widest + 1))
        for i in draw.sample(range(1, 5 * count + 1), max(2 * count, 1))
    ]
    rows = [f"INSERT INTO {domain.items} VALUES {row};" for row in items]
    rows += [f"INSERT INTO {domain.events} VALUES {row};" for row in events]
    return domain.schema() + "\n".join(rows)


class Judge:
    """Tells right from wrong statements of one domain, on many databases."""

    def __init__(self, domain: Domain) -> None:
        self._domain, self._bases = domain, list[sqlite3.Connection]()
        for seed in range(JUDGES):
            base = sqlite3.connect(":memory:", isolation_level=None)
            base.executescript(judge_script(domain, seed))
            base.execute("PRAGMA foreign_keys = ON")
            self._bases.append(base)
        self._known: dict[str, list[Any]] = {}

    def outcome(self, base: sqlite3.Connection, sql: str, ordered: bool) -> Any:
        """Rows, or all tables after a change."""
        base.execute("SAVEPOINT judge")
        rows: list[Any] = []
        try:
            for statement in sql.split(";"):
                if statement.strip():
                    rows = base.execute(statement).fetchall()
            if sql.startswith("SELECT"):
                return rows if ordered else sorted(rows, key=repr)
            return [sorted(base.execute(f"SELECT * FROM {table}")) for table in self._domain.tables()]
        except sqlite3.Error as error:
            return str(error)
        finally:
            base.execute("ROLLBACK TO judge")
            base.execute("RELEASE judge")

    def is_wrong(self, task: Task, sql: str) -> bool:
        """True if it differs from the reference on a database."""
        reference, ordered = str(task.hidden["reference"]), bool(task.hidden["ordered"])
        if reference not in self._known:
            self._known[reference] = [self.outcome(base, reference, ordered) for base in self._bases]
        return any(
            self.outcome(base, sql, ordered) != wanted
            for base, wanted in zip(self._bases, self._known[reference], strict=True)
        )


def cases() -> Iterator[tuple[Task, NearMiss]]:
    """Wrong near misses of every question of every domain, each statement once."""
    for split in ("train", "heldout"):
        judges: dict[str, Judge] = {}
        for task in generate(split, per_question=1):
            domain = BY_NAME[str(task.hidden["domain"])]
            judge = judges.setdefault(domain.items, Judge(domain))
            made = {miss.sql: miss for miss in near_misses(task, domain)}
            valid = Judge.outcome
            for miss in made.values():
                if isinstance(valid(judge, judge._bases[0], miss.sql, False), str):
                    continue  # no SQL, such as a column of a table that is not joined
                if judge.is_wrong(task, miss.sql):
                    yield task, miss


def main(visits: int = 1) -> int:
    """Grade all near misses and right answers; return the exit status."""
    backend = sandbox_backend()
    found = [*cases()]
    tasks = [task for split in ("train", "heldout") for task in generate(split, per_question=1)]
    env = SqlDeskEnv(tasks=tasks, sandbox=backend, max_turns=1)
    accepted: list[dict[str, str]] = []
    tried, graded_s, cpu_s = Counter[str](), 0.0, 0.0

    def reward(task: Task, sql: str, seed: int) -> float:
        nonlocal graded_s, cpu_s
        env.reset(seed=seed, options={"task": task.id})
        began, cpu = time.monotonic(), time.process_time()
        earned = env.step(f"```sql\n{sql}\n```")[1]
        graded_s, cpu_s = graded_s + time.monotonic() - began, cpu_s + time.process_time() - cpu
        return earned

    for task, miss in found:
        for seed in range(visits):
            tried[miss.rule] += 1
            if reward(task, miss.sql, seed):
                accepted.append({"task": task.id, "rule": miss.rule, "sql": miss.sql})
    wrong = sum(tried.values())
    print(f"{'rule':<24}{'wrong':>8}{'accepted':>10}")
    for rule, count in sorted(tried.items()):
        print(f"{rule:<24}{count:>8}{sum(each['rule'] == rule for each in accepted):>10}")
    print(f"{'all':<24}{wrong:>8}{len(accepted):>10}  {100 * len(accepted) / wrong:.2f} %")
    for each in accepted[:10]:
        print(f"    {each['task']}: {each['sql']}")
    miss_ms = 1000 * graded_s / wrong
    graded_s = cpu_s = 0.0
    right = [
        (task, sql) for task in tasks for sql in right_answers(task, BY_NAME[str(task.hidden["domain"])])
    ]
    rejected = [(task.id, sql) for task, sql in right if not reward(task, sql, 0)]
    print(f"right answers in other words: {len(right)}, rejected {len(rejected)} {rejected[:3]}")
    right_ms, host_ms = 1000 * graded_s / len(right), 1000 * cpu_s / len(right)
    print(
        f"a grade takes {miss_ms:.2f} ms if wrong, {right_ms:.2f} if right, {host_ms:.2f} of it on the host"
    )
    env.close()
    folder = Path("runs/bench")
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"wrong": wrong, "accepted": accepted, "right": len(right), "rejected": rejected}
    times = {"miss_ms": miss_ms, "right_ms": right_ms, "host_ms": host_ms}
    (folder / "sql.json").write_text(json.dumps({**numbers, **times}))
    return int(len(accepted) > MAX_ACCEPTED * wrong or bool(rejected))


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
