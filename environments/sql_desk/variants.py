"""Answers to a request that are known to be wrong or right, to measure wrong verdicts.

Near misses are made by rules from the reference: a row limit, a bound on an id, a size or an amount, a lost
or weakened condition, another aggregate, another order. One counts as wrong if it differs from the reference
on one of `JUDGES` databases, which are made here, by other rules than the grader's, and have up to 1,500
items. Right answers are the reference in other words.
"""

from __future__ import annotations

import contextlib
import random
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, final

from envkit.env.authored import Variant
from envkit.environments.sql_desk.tasks import BY_NAME, Domain, SqlHidden
from envkit.types import Task

#: Databases that tell wrong answers from right ones.
JUDGES: Final = 24
#: Limits and bounds that a wrong answer may state; four of them are tried on each question.
_LIMITS: Final = (5, 6, 10, 11, 20, 28, 29, 30, 50, 100, 1_000)
_AGGREGATE: Final = re.compile(r"\b(COUNT|SUM|MAX)\(([^)]*)\)")


@final
@dataclass(frozen=True, slots=True)
class NearMiss:
    """A statement that may differ from the reference.

    Args:
        rule: how it was made, such as "row limit".
        sql: the statement.
    """

    rule: str
    sql: str


def near_misses(task: Task, domain: Domain) -> Iterator[NearMiss]:
    """Apply every rule to a task's reference. Some results may be right."""
    reference = SqlHidden.from_task(task).reference
    parts = reference.split("; ")
    last, before = parts[-1], "".join(f"{part}; " for part in parts[:-1])
    items, size, amount = domain.items, domain.size, domain.amount
    table = domain.events if re.search(rf"\b{domain.events}\b", last) else items
    number = amount if table == domain.events else size
    tail = re.search(r" (?:GROUP BY|ORDER BY) .*$", last)
    body, end = (last[: tail.start()], tail[0]) if tail else (last, "")
    limits = random.Random(task.id).sample(_LIMITS, 4)
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


def right_answers(task: Task) -> Iterator[tuple[str, str]]:
    """A reference in other words, each with the kind of change."""
    hidden = SqlHidden.from_task(task)
    reference = hidden.reference
    found = {"semicolon": f"{reference};", "comment": f"-- the answer\n{reference}"}
    if reference.startswith("SELECT"):
        if not hidden.ordered:
            found["another order"] = f"SELECT * FROM ({reference}) AS answer ORDER BY 1 DESC"
            found["subquery"] = f"WITH answer AS ({reference}) SELECT * FROM answer"
        if "JOIN" not in reference:
            found["counted column"] = reference.replace("COUNT(*)", "COUNT(id)")
    found["one more condition"] = reference.replace(" WHERE ", " WHERE 1 = 1 AND ")
    found["another bound"] = re.sub(r"> (\d+)", lambda bound: f">= {int(bound[1]) + 1}", reference)
    yield from ((kind, sql) for kind, sql in found.items() if sql != reference)


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


@final
class Judge:
    """Tells right from wrong statements of one domain, on `JUDGES` databases; the caller closes it."""

    def __init__(self, domain: Domain) -> None:
        self._domain, self._databases = domain, list[sqlite3.Connection]()
        self._known: dict[SqlHidden, list[Any]] = {}
        for seed in range(JUDGES):
            database = sqlite3.connect(":memory:", isolation_level=None)
            database.executescript(judge_script(domain, seed))
            database.execute("PRAGMA foreign_keys = ON")
            self._databases.append(database)

    def is_wrong(self, task: Task, sql: str) -> bool:
        """True if a statement differs from the reference on a database; False if it is no SQL."""
        hidden = SqlHidden.from_task(task)
        if isinstance(self._outcome(self._databases[0], sql, hidden), str):
            return False  # such as a column of a table that is not joined
        if hidden not in self._known:
            self._known[hidden] = [self._outcome(each, hidden.reference, hidden) for each in self._databases]
        return any(
            self._outcome(database, sql, hidden) != wanted
            for database, wanted in zip(self._databases, self._known[hidden], strict=True)
        )

    def close(self) -> None:
        """Close the databases."""
        for database in self._databases:
            database.close()

    def _outcome(self, database: sqlite3.Connection, sql: str, hidden: SqlHidden) -> Any:
        """Rows, or all tables after a change, or an error's text."""
        database.execute("SAVEPOINT judge")
        rows: list[Any] = []
        try:
            for statement in sql.split(";"):
                if statement.strip():
                    rows = database.execute(statement).fetchall()
            if not hidden.write:
                return rows if hidden.ordered else sorted(rows, key=repr)
            return [sorted(database.execute(f"SELECT * FROM {table}")) for table in self._domain.tables()]
        except sqlite3.Error as error:
            return str(error)
        finally:
            database.execute("ROLLBACK TO judge")
            database.execute("RELEASE judge")


def wrong_answers(task: Task, judge: Judge) -> list[NearMiss]:
    """The near misses that are wrong, each statement once."""
    made = {miss.sql: miss for miss in near_misses(task, BY_NAME[SqlHidden.from_task(task).domain])}
    return [miss for miss in made.values() if judge.is_wrong(task, miss.sql)]


def variants_of(task: Task) -> list[Variant]:
    """Wrong and right answers to a request."""
    with contextlib.closing(Judge(BY_NAME[SqlHidden.from_task(task).domain])) as judge:
        answers = [(miss.rule, miss.sql, False) for miss in wrong_answers(task, judge)]
    answers += [(kind, sql, True) for kind, sql in right_answers(task)]
    return [Variant(kind, (f"```sql\n{sql}\n```",), is_right) for kind, sql, is_right in answers]
