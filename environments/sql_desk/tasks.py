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

from envkit.errors import TaskFileError
from envkit.hidden import read_hidden, to_json
from envkit.types import Task

#: Workspace path of the script that creates the shown database.
SCRIPT: Final = "desk.sql"
#: Items of a large database, if no constant asks for more, and most items that constants can ask for.
_LARGE: Final = 64
MAX_ITEMS: Final = 2_000
#: Largest number that a large database goes beyond, and most numbers. Sizes stay below 2**31.
MAX_CONSTANT: Final = 1_000_000_000
MOST_CONSTANTS: Final = 200
#: Numbers beyond what a statement may guess from the shown rows.
_FAR: Final = (73, 1_009, 1_000_003)
_PEOPLE = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jo")


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
            (i, draw.choice(busy), draw.choice(_PEOPLE), draw.randrange(1, 10))
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
            (i, draw.choice(busy), draw.choice(_PEOPLE), draw.randrange(1, 10))
            for i in draw.sample(range(1, 40), draw.randrange(1, 5))
        ]
        return self.schema() + _inserts(self.items, items) + _inserts(self.events, events)

    def medium_script(self, seed: object, constants: Collection[int]) -> str:
        """Return a database as large as a shown one, drawn from a seed, but with gaps between the ids.

        Args:
            seed: determines all rows.
            constants: numbers that statements compare with. Items share a few sizes, these and their
                successors among them, so that ``>=`` for ``>`` and a missing tie-breaker give other rows.
        """
        draw = random.Random(f"{self.items} medium {seed}")
        names = draw.sample(self.names, draw.randrange(6, len(self.names) + 1))
        ids = draw.sample(range(1, 40), len(names))
        busy = draw.sample(ids, len(ids) - draw.randrange(1, 4))
        sizes = [*_with_successors(constants), *draw.sample(range(1, 60), 3)]
        items = [
            (i, name, draw.choice(self.kinds), draw.choice(sizes)) for i, name in zip(ids, names, strict=True)
        ]
        events = [
            (i, draw.choice(busy), draw.choice(_PEOPLE), draw.randrange(1, 10))
            for i in draw.sample(range(1, 90), draw.randrange(12, 30))
        ]
        return self.schema() + _inserts(self.items, items) + _inserts(self.events, events)

    def large_script(self, seed: object, constants: Collection[int]) -> str:
        """Return a database beyond all constants, drawn from a seed.

        It has more rows than the constants together, up to `MAX_ITEMS`. Each constant is an id, a size and an
        amount, and so is a larger number. Kinds and people also have names that contain others' names.

        Args:
            seed: determines all rows.
            constants: numbers that statements compare with. Those above `MAX_CONSTANT`, and all but the
                `MOST_CONSTANTS` largest, do not count.
        """
        draw = random.Random(f"{self.items} large {seed}")
        known = sorted(number for number in {*constants} if 0 < number <= MAX_CONSTANT)
        known = known[-MOST_CONSTANTS:]
        count = min(max(_LARGE, 2 * len(known) + 8, 1 + sum(known)), MAX_ITEMS)
        numbers = [*_with_successors(known), *(2 * number + 11 for number in known[-1:]), *_FAR]

        def ids(count: int) -> list[int]:
            found = {*_with_successors(known)}
            found |= {*draw.sample(range(1, 4 * count), count)}
            return draw.sample(sorted(found), len(found))

        def filled(chosen: Sequence[int], others: Sequence[int], count: int) -> list[int]:
            found = [*chosen, *(draw.choice([*chosen, *others]) for _ in range(count - len(chosen)))]
            return draw.sample(found, len(found))

        item_ids, event_ids = ids(count), ids(count + count // 2)
        copies = range(2, 3 + len(item_ids) // len(self.names))
        names = [*self.names, *(f"{name} {number}" for number in copies for name in self.names)]
        names = draw.sample(names, len(item_ids))
        kinds = [
            *self.kinds * 4,
            *(f"{kind} parts" for kind in self.kinds),
            *(f"new {k}" for k in self.kinds),
        ]
        people = [*_PEOPLE * 3, *(f"{person} B." for person in _PEOPLE), *(f"Le{p.lower()}" for p in _PEOPLE)]
        sizes = filled([0, *numbers], draw.sample(range(1, 60), 5), len(item_ids))
        amounts = filled(numbers, range(1, 10), len(event_ids))
        busy = draw.sample(item_ids, len(item_ids) * 4 // 5)
        items = [
            (i, name, draw.choice(kinds), size) for i, name, size in zip(item_ids, names, sizes, strict=True)
        ]
        events = [
            (i, draw.choice(busy), draw.choice(people), amount)
            for i, amount in zip(event_ids, amounts, strict=True)
        ]
        return self.schema() + _inserts(self.items, items) + _inserts(self.events, events)


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
    low, step, person = draw.randrange(10, 40), draw.randrange(2, 9), draw.choice(_PEOPLE)
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
        if SCRIPT not in task.files:
            raise TaskFileError(
                f"task {task.id}: files has no {SCRIPT!r}; expected the database's script there"
            )
        return found


def generate(split: str, per_question: int = 6) -> list[Task]:
    """Return the tasks of a split, with the levels alternating.

    Args:
        split: ``"train"``, ``"heldout"`` or ``"starter"``, the first few train tasks.
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
