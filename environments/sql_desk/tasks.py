"""Generates databases, and requests about them at four levels of difficulty.

    1  one table: select all of it, or one column
    2  one table: count, sum, maximum, filter, sort
    3  two tables: join, group, rows without a match
    4  changes: update, delete, delete rows that others refer to

Train and held-out tasks have different tables and columns.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from envkit.env.hidden import read_hidden, text_file, to_json
from envkit.errors import TaskFileError
from envkit.types import Task

#: Workspace path of the script that creates the shown database.
SCRIPT: Final = "desk.sql"
#: Items of a large database, if no number asks for more, and most items that numbers can ask for.
_LARGE: Final = 64
MAX_ITEMS: Final = 2_400
#: Largest number that a large database goes beyond, and most numbers. Sizes stay below 2**31.
MAX_NUMBER: Final = 1_000_000_000
MOST_NUMBERS: Final = 200
#: Most numbers of a submission that have tiny databases.
TINY_NUMBERS: Final = 4
#: Numbers beyond what a statement may guess from the shown rows.
_FAR: Final = (73, 1_009, 1_000_003)
#: People in events.
PEOPLE: Final = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jo")


@dataclass(frozen=True, slots=True)
class Asked:
    """The numbers, kind and person that a request names, so that fresh databases hold them.

    Args:
        numbers: those in its reference.
        kind, person: the kind of items and the person that it is about; empty if it is about all.
        lonely: it is about items without events.
    """

    numbers: frozenset[int]
    kind: str = ""
    person: str = ""
    lonely: bool = False


@dataclass(frozen=True, slots=True)
class Domain:
    """Names of a database with two tables: items such as products, and events such as orders of them.

    Args:
        items, events: the tables.
        item: singular of ``items``; ``events`` refers to them in a column ``{item}_id``.
        name, kind, size: columns of ``items``: a unique text, one of ``kinds``, a number.
        who, amount: columns of ``events``: a person, a number from 1 to 9.
        kinds, names: values of the columns ``kind`` and ``name``.
    """

    items: str
    events: str
    item: str
    name: str
    kind: str
    size: str
    who: str
    amount: str
    kinds: tuple[str, ...]
    names: tuple[str, ...]

    def tables(self) -> dict[str, list[str]]:
        """Table -> its columns."""
        return {
            self.items: ["id", self.name, self.kind, self.size],
            self.events: ["id", f"{self.item}_id", self.who, self.amount],
        }

    def schema(self) -> str:
        """Return the statements that create the tables."""
        return (
            f"CREATE TABLE {self.items} (id INTEGER PRIMARY KEY, {self.name} TEXT NOT NULL UNIQUE, "
            f"{self.kind} TEXT NOT NULL, {self.size} INTEGER NOT NULL CHECK ({self.size} >= 0));\n"
            f"CREATE TABLE {self.events} (id INTEGER PRIMARY KEY, {self.item}_id INTEGER NOT NULL REFERENCES "
            f"{self.items} (id), {self.who} TEXT NOT NULL, {self.amount} INTEGER NOT NULL);\n"
        )

    def script(self, seed: object) -> str:
        """Return the schema with a few rows, drawn from a seed: a database to show."""
        draw = random.Random(f"{self.items} {seed}")
        names = draw.sample(self.names, draw.randrange(6, len(self.names) + 1))
        items = [(i, name, draw.choice(self.kinds), draw.randrange(1, 60)) for i, name in enumerate(names, 1)]
        busy = draw.sample(range(1, len(names) + 1), len(names) - draw.randrange(1, 4))
        events = [
            (i, draw.choice(busy), draw.choice(PEOPLE), draw.randrange(1, 10))
            for i in range(1, draw.randrange(12, 30))
        ]
        return self.schema() + _inserts(self.items, items) + _inserts(self.events, events)

    def small_script(self, seed: object) -> str:
        """Return a database with one to three items and one to four events, drawn from a seed."""
        draw = random.Random(f"{self.items} small {seed}")
        names = draw.sample(self.names, draw.randrange(1, 4))
        ids = draw.sample(range(1, 40), len(names))
        busy = draw.sample(ids, max(len(ids) - draw.randrange(2), 1))
        items = [
            (i, name, draw.choice(self.kinds), draw.randrange(60)) for i, name in zip(ids, names, strict=True)
        ]
        events = [
            (i, draw.choice(busy), draw.choice(PEOPLE), draw.randrange(1, 10))
            for i in draw.sample(range(1, 40), draw.randrange(1, 5))
        ]
        return self.schema() + _inserts(self.items, items) + _inserts(self.events, events)

    def medium_script(self, seed: object, asked: Asked) -> str:
        """Return a database as large as a shown one, drawn from a seed, but with gaps between the ids.

        Items share a few sizes, the request's numbers and their successors among them, so that ``>=`` for
        ``>`` and a missing tie-breaker give other rows.
        """
        draw = random.Random(f"{self.items} medium {seed}")
        names = draw.sample(self.names, draw.randrange(6, len(self.names) + 1))
        ids = draw.sample(range(1, 40), len(names))
        busy = draw.sample(ids, len(ids) - draw.randrange(1, 4))
        sizes = [*_with_successors(asked.numbers), *draw.sample(range(1, 60), 3)]
        items = [
            (i, name, draw.choice(self.kinds), draw.choice(sizes)) for i, name in zip(ids, names, strict=True)
        ]
        events = [
            (i, draw.choice(busy), draw.choice(PEOPLE), draw.randrange(1, 10))
            for i in draw.sample(range(1, 90), draw.randrange(12, 30))
        ]
        return self.schema() + _inserts(self.items, items) + _inserts(self.events, events)

    def large_script(self, seed: object, asked: Asked, numbers: Collection[int] = ()) -> str:
        """Return a database beyond all numbers, drawn from a seed.

        About half of its rows are of the kind and person that the request names, and these are more than the
        numbers together, up to `MAX_ITEMS`. The other kinds and people are many, and contain known names.
        Each number is an id, a size and an amount, and so is a larger one. The last item and event have the
        largest of all, and a name that no shown database has: to leave them out changes every answer.

        Args:
            seed: determines all rows.
            asked: what the request names.
            numbers: those of a submission. Numbers above `MAX_NUMBER`, and all but the `MOST_NUMBERS`
                largest, do not count.
        """
        draw = random.Random(f"{self.items} large {seed}")
        known = sorted(n for n in {*asked.numbers, *numbers} if 0 < n <= MAX_NUMBER)[-MOST_NUMBERS:]
        count = min(max(_LARGE, 2 * (sum(known) + len(known)) + 20), MAX_ITEMS)
        wanted = [*_with_successors(known), *(2 * number + 11 for number in known[-1:]), *_FAR]

        def ids(count: int) -> list[int]:
            found = sorted({*_with_successors(known), *draw.sample(range(1, 4 * count), count)})
            return [*draw.sample(found[:-1], len(found) - 1), found[-1]]

        def filled(others: Sequence[int], count: int) -> list[int]:
            found = [*wanted, *(draw.choice([*wanted, *others]) for _ in range(count - 1 - len(wanted)))]
            return [*draw.sample(found, count - 1), max(found) + 1_000]

        def named(known: Sequence[str], asked: str, number: int) -> str:
            name, other = draw.choice(known), draw.random()
            if other < 0.5:
                return asked or f"{name} {number}"
            return f"new {name}" if other < 0.6 else f"{name} {number}" if other < 0.8 else name

        item_ids, event_ids = ids(count), ids(count + count // 2)
        copies = range(2, 3 + len(item_ids) // len(self.names))
        new_names = [f"{name} {number}" for number in copies for name in self.names]
        names = draw.sample([*self.names, *new_names[1:]], len(item_ids) - 1) + new_names[:1]
        busy = draw.sample(item_ids[:-1], count // 2)
        kinds = [named(self.kinds, asked.kind, number) for number in range(len(item_ids) - 1)]
        people = [named(PEOPLE, asked.person, number) for number in range(len(event_ids) - 1)]
        sizes = filled(draw.sample(range(60), 5), len(item_ids))
        amounts = filled(range(1, 10), len(event_ids))
        parents = [draw.choice(busy) for _ in event_ids[1:]]
        kinds.append(asked.kind or f"new {self.kinds[0]} 1")
        people.append(asked.person or f"new {PEOPLE[0]} 1")
        parents.append(busy[0] if asked.lonely else item_ids[-1])
        items = [*zip(item_ids, names, kinds, sizes, strict=True)]
        events = [*zip(event_ids, parents, people, amounts, strict=True)]
        return self.schema() + _inserts(self.items, items) + _inserts(self.events, events)

    def tiny_scripts(self, asked: Asked, numbers: Collection[int]) -> list[str]:
        """Return databases of one item and one event that the request is about, and that a number decides.

        For each of `TINY_NUMBERS` numbers and its successor, one where it is the id, and one where it is the
        size and the amount. So an answer that leaves that row out is wrong, even if many others hide it in a
        larger database.
        """
        kind, person = asked.kind or self.kinds[0], asked.person or PEOPLE[0]
        found: list[str] = []
        for value in _with_successors(sorted(n for n in {*numbers} if 0 < n <= MAX_NUMBER)[:TINY_NUMBERS]):
            for id_, size in ((value, _FAR[-1] + value), (_FAR[-1] + value, value)):
                items = [(id_, self.names[0], kind, size)]
                other = id_ + 1 if asked.lonely else id_
                if asked.lonely:
                    items.append((other, self.names[1], kind, 0))
                events = [(id_, other, person, size)]
                rows = _inserts(self.items, items) + _inserts(self.events, events)
                found.append(self.schema() + rows)
        return found


def _with_successors(constants: Iterable[int]) -> list[int]:
    return sorted({bound for number in constants for bound in (number, number + 1)})


def _inserts(table: str, rows: Sequence[tuple[object, ...]]) -> str:
    values = ",\n".join(str(row) for row in rows)
    return f"INSERT INTO {table} VALUES\n{values};\n"


_TRAIN: Final = (
    Domain(
        *("products", "orders", "product", "name", "category", "price", "customer", "quantity"),
        ("tools", "toys", "garden", "kitchen"),
        ("hammer", "saw", "kite", "robot", "rake", "hose", "pan", "whisk", "drill", "puzzle"),
    ),
    Domain(
        *("books", "loans", "book", "title", "genre", "pages", "reader", "days"),
        ("crime", "poetry", "travel", "science"),
        ("Night Rain", "Ash", "North", "Atoms", "Harbour", "Letters", "Winter", "Glass", "Salt", "Owls"),
    ),
    Domain(
        *("films", "screenings", "film", "title", "style", "minutes", "host", "guests"),
        ("comedy", "drama", "animation", "western"),
        ("Blue Door", "Mirage", "The Well", "Paper Sun", "Dust", "Echo", "Lanterns", "Tides", "Ember", "Fog"),
    ),
    Domain(
        *("plants", "waterings", "plant", "label", "family", "height", "gardener", "litres"),
        ("fern", "cactus", "herb", "rose"),
        ("Hook", "Spike", "Mint", "Basil", "Rosa", "Thorn", "Dill", "Velvet", "Moss", "Sage"),
    ),
)
_HELDOUT: Final = (
    Domain(
        *("rooms", "bookings", "room", "sign", "floor", "seats", "guest", "nights"),
        ("ground", "first", "second", "attic"),
        ("Maple", "Cedar", "Oak", "Birch", "Elm", "Pine", "Ash", "Willow", "Alder", "Beech"),
    ),
    Domain(
        *("boats", "trips", "boat", "callsign", "harbour", "length", "skipper", "hours"),
        ("east", "west", "old", "new"),
        ("Gull", "Tern", "Petrel", "Skua", "Heron", "Swift", "Eider", "Teal", "Plover", "Curlew"),
    ),
    Domain(
        *("dishes", "meals", "dish", "caption", "course", "calories", "diner", "portions"),
        ("starter", "main", "dessert", "drink"),
        ("soup", "salad", "stew", "pie", "cake", "tea", "juice", "roast", "bread", "ice"),
    ),
)
_DOMAINS: Final[Mapping[str, Sequence[Domain]]] = {
    "train": _TRAIN,
    "starter": _TRAIN[:1],
    "heldout": _HELDOUT,
}
BY_NAME: Final = {domain.items: domain for domain in (*_TRAIN, *_HELDOUT)}


@dataclass(frozen=True, slots=True)
class Question:
    """One request about a database.

    Args:
        level: 1 to 4.
        name: name of the template.
        ask: the prompt.
        reference: statements that answer it.
        ordered: the order of the rows counts.
    """

    level: int
    name: str
    ask: str
    reference: str
    ordered: bool = False


def questions(d: Domain, draw: random.Random) -> Iterator[Question]:
    """Fill in every template with values drawn for one domain."""
    kind, other = draw.sample(d.kinds, 2)
    low, step, person = draw.randrange(10, 40), draw.randrange(2, 9), draw.choice(PEOPLE)
    items, events, key = d.items, d.events, f"{d.item}_id"
    joined = f"{items} JOIN {events} ON {events}.{key} = {items}.id"
    yield Question(1, "all", f"Show the table {items}.", f"SELECT * FROM {items}")
    yield Question(1, "all-deeds", f"Show the table {events}.", f"SELECT * FROM {events}")
    yield Question(1, "names", f"List the {d.name} of all {items}.", f"SELECT {d.name} FROM {items}")
    yield Question(2, "count", f"How many {items} are there?", f"SELECT COUNT(*) FROM {items}")
    yield Question(
        2,
        "count-kind",
        f"How many {items} have the {d.kind} '{kind}'?",
        f"SELECT COUNT(*) FROM {items} WHERE {d.kind} = '{kind}'",
    )
    yield Question(
        2, "largest", f"What is the largest {d.size} in {items}?", f"SELECT MAX({d.size}) FROM {items}"
    )
    yield Question(
        2, "total", f"What do all {d.amount} in {events} add up to?", f"SELECT SUM({d.amount}) FROM {events}"
    )
    yield Question(
        2,
        "list-above",
        f"List the {d.name} of all {items} with a {d.size} above {low}.",
        f"SELECT {d.name} FROM {items} WHERE {d.size} > {low}",
    )
    yield Question(
        2,
        "sorted",
        f"List the {d.name} of all {items}, those with the largest {d.size} first, equal ones by {d.name}.",
        f"SELECT {d.name} FROM {items} ORDER BY {d.size} DESC, {d.name}",
        ordered=True,
    )
    yield Question(
        3,
        "count-each",
        f"For each {d.kind}, how many {items} are there? Give {d.kind} and number.",
        f"SELECT {d.kind}, COUNT(*) FROM {items} GROUP BY {d.kind}",
    )
    yield Question(
        3,
        "none",
        f"List the {d.name} of all {items} without any {events}.",
        f"SELECT {d.name} FROM {items} WHERE id NOT IN (SELECT {key} FROM {events})",
    )
    yield Question(
        3,
        "total-each",
        f"For each of the {items} that has {events}, what do their {d.amount} add up to? "
        f"Give {d.name} and sum.",
        f"SELECT {d.name}, SUM({d.amount}) FROM {joined} GROUP BY {items}.id",
    )
    yield Question(
        3,
        "who",
        f"Which {d.who}s have {events} of {items} with the {d.kind} '{kind}'? Give each once.",
        f"SELECT DISTINCT {d.who} FROM {joined} WHERE {d.kind} = '{kind}'",
    )
    yield Question(
        4,
        "raise",
        f"Raise the {d.size} of all {items} with the {d.kind} '{kind}' by {step}.",
        f"UPDATE {items} SET {d.size} = {d.size} + {step} WHERE {d.kind} = '{kind}'",
    )
    yield Question(
        4,
        "forget",
        f"Delete all {events} of the {d.who} '{person}'.",
        f"DELETE FROM {events} WHERE {d.who} = '{person}'",
    )
    yield Question(
        4,
        "rename",
        f"Change the {d.kind} '{kind}' to '{other}' wherever it stands in {items}.",
        f"UPDATE {items} SET {d.kind} = '{other}' WHERE {d.kind} = '{kind}'",
    )
    yield Question(
        4,
        "remove",
        f"Delete all {items} with the {d.kind} '{kind}', and first the {events} that refer to them.",
        f"DELETE FROM {events} WHERE {key} IN (SELECT id FROM {items} WHERE {d.kind} = '{kind}'); "
        f"DELETE FROM {items} WHERE {d.kind} = '{kind}'",
    )


@final
@dataclass(frozen=True, slots=True)
class SqlHidden:
    """Hidden fields of a task.

    Args:
        domain: key of `BY_NAME`.
        reference: statements that answer the request.
        ordered: the order of the rows counts.
        write: the request is for a change of rows.
    """

    domain: str
    reference: str
    ordered: bool
    write: bool

    @classmethod
    def from_task(cls, task: Task) -> SqlHidden:
        """Read a task's hidden fields.

        Raises:
            TaskFileError: the task is not one of the SQL desk.
        """
        found = read_hidden(cls, task)
        if found.domain not in BY_NAME:
            known = ", ".join(BY_NAME)
            raise TaskFileError(
                f"task {task.id}: hidden.domain is {found.domain!r}; expected one of: {known}"
            )
        script_of(task)
        return found


def script_of(task: Task) -> str:
    """The script that makes a task's database.

    Raises:
        TaskFileError: the task has none.
    """
    return text_file(task, SCRIPT, "the database's script")


def generate(split: str, per_question: int = 6) -> list[Task]:
    """Return the tasks of a split, domain after domain, from level 1 to 4.

    Args:
        split: ``"train"``, ``"heldout"`` or ``"starter"``, one task of each question of a train domain.
        per_question: tasks per domain and template.
    """
    made: list[Task] = []
    for number in range(1 if split == "starter" else per_question):
        for domain in _DOMAINS[split]:
            draw = random.Random(f"{split} {domain.items} {number}")
            for question in questions(domain, draw):
                made.append(_task(split, number, domain, question))
    return made


def _task(split: str, number: int, domain: Domain, question: Question) -> Task:
    script = domain.script(f"shown {split} {number} {question.name}")
    return Task(
        id=f"{split}/{domain.items}-{question.name}-{number}",
        split=split,
        prompt=question.ask,
        files={SCRIPT: script},
        metadata={
            "operator": f"level {question.level}",
            "level": question.level,
            "source": f"{domain.items} {question.name}",
        },
        hidden=to_json(
            SqlHidden(
                domain=domain.items,
                reference=question.reference,
                ordered=question.ordered,
                write=question.level == 4,
            )
        ),
    )
