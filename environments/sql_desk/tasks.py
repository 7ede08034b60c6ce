"""Made-up databases, and questions about them at four levels.

    1  a whole table, or a column of it
    2  one table: count, add up, find the largest, list by a condition, sort
    3  two tables: join, group, have none
    4  change: update, delete, and delete what others refer to

Train and held-out tasks are about different things, so no table or column of the one is in the other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from envkit.types import Task

SCRIPT: Final = "desk.sql"
_PEOPLE = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jo")


@dataclass(frozen=True, slots=True)
class Domain:
    """What a database is about: things of several kinds, and what people did with them.

    Args:
        things, deeds: the two tables.
        thing: one of the things, and its column in ``deeds``.
        name, kind, size: columns of ``things``: a text, one of ``kinds``, a number.
        who, amount: columns of ``deeds``: a person, a number from 1 to 9.
        kinds, names: values.
    """

    things: str
    deeds: str
    thing: str
    name: str
    kind: str
    size: str
    who: str
    amount: str
    kinds: tuple[str, ...]
    names: tuple[str, ...]

    def tables(self) -> dict[str, list[str]]:
        """Tables with their columns."""
        return {
            self.things: ["id", self.name, self.kind, self.size],
            self.deeds: ["id", f"{self.thing}_id", self.who, self.amount],
        }

    def schema(self) -> str:
        """The statements that make the tables."""
        return (
            f"CREATE TABLE {self.things} (id INTEGER PRIMARY KEY, {self.name} TEXT NOT NULL UNIQUE, "
            f"{self.kind} TEXT NOT NULL, {self.size} INTEGER NOT NULL CHECK ({self.size} >= 0));\n"
            f"CREATE TABLE {self.deeds} (id INTEGER PRIMARY KEY, {self.thing}_id INTEGER NOT NULL REFERENCES "
            f"{self.things} (id), {self.who} TEXT NOT NULL, {self.amount} INTEGER NOT NULL);\n"
        )

    def script(self, seed: object, edges: Sequence[int] | None = None) -> str:
        """The schema, and rows that follow from the seed.

        Args:
            seed: decides all draws.
            edges: sizes that tell a bound from its neighbour. Where they are given, even none, things have
                few sizes, these among them: what takes a bound for inside, or leaves ties to chance, shows.
        """
        draw = random.Random(f"{self.things} {seed}")
        names = draw.sample(self.names, draw.randrange(6, len(self.names) + 1))
        sizes = range(1, 60) if edges is None else [*edges, *draw.sample(range(1, 60), 3)]
        things = [(i, name, draw.choice(self.kinds), draw.choice(sizes)) for i, name in enumerate(names, 1)]
        busy = draw.sample(range(1, len(names) + 1), len(names) - draw.randrange(1, 4))
        deeds = [
            (i, draw.choice(busy), draw.choice(_PEOPLE), draw.randrange(1, 10))
            for i in range(1, draw.randrange(12, 30))
        ]
        return self.schema() + _inserts(self.things, things) + _inserts(self.deeds, deeds)


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
BY_NAME: Final = {domain.things: domain for domain in (*_TRAIN, *_HELDOUT)}


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to ask.

    Args:
        level: 1 to 4.
        name: which template it is.
        ask: the words.
        reference: a statement, or several, that answer it.
        ordered: the order of rows is part of the answer.
    """

    level: int
    name: str
    ask: str
    reference: str
    ordered: bool = False


def questions(d: Domain, draw: random.Random) -> Iterator[Question]:
    """All templates, filled in."""
    kind, other = draw.sample(d.kinds, 2)
    low, step, person = draw.randrange(10, 40), draw.randrange(2, 9), draw.choice(_PEOPLE)
    things, deeds, key = d.things, d.deeds, f"{d.thing}_id"
    joined = f"{things} JOIN {deeds} ON {deeds}.{key} = {things}.id"
    yield Question(1, "all", f"Show the table {things}.", f"SELECT * FROM {things}")
    yield Question(1, "all-deeds", f"Show the table {deeds}.", f"SELECT * FROM {deeds}")
    yield Question(1, "names", f"List the {d.name} of all {things}.", f"SELECT {d.name} FROM {things}")
    yield Question(2, "count", f"How many {things} are there?", f"SELECT COUNT(*) FROM {things}")
    yield Question(
        2,
        "count-kind",
        f"How many {things} have the {d.kind} '{kind}'?",
        f"SELECT COUNT(*) FROM {things} WHERE {d.kind} = '{kind}'",
    )
    yield Question(
        2, "largest", f"What is the largest {d.size} in {things}?", f"SELECT MAX({d.size}) FROM {things}"
    )
    yield Question(
        2, "total", f"What do all {d.amount} in {deeds} add up to?", f"SELECT SUM({d.amount}) FROM {deeds}"
    )
    yield Question(
        2,
        "list-above",
        f"List the {d.name} of all {things} with a {d.size} above {low}.",
        f"SELECT {d.name} FROM {things} WHERE {d.size} > {low}",
    )
    yield Question(
        2,
        "sorted",
        f"List the {d.name} of all {things}, those with the largest {d.size} first, equal ones by {d.name}.",
        f"SELECT {d.name} FROM {things} ORDER BY {d.size} DESC, {d.name}",
        ordered=True,
    )
    yield Question(
        3,
        "count-each",
        f"For each {d.kind}, how many {things} are there? Give {d.kind} and number.",
        f"SELECT {d.kind}, COUNT(*) FROM {things} GROUP BY {d.kind}",
    )
    yield Question(
        3,
        "none",
        f"List the {d.name} of all {things} without any {deeds}.",
        f"SELECT {d.name} FROM {things} WHERE id NOT IN (SELECT {key} FROM {deeds})",
    )
    yield Question(
        3,
        "total-each",
        f"For each of the {things} that has {deeds}, what do their {d.amount} add up to? "
        f"Give {d.name} and sum.",
        f"SELECT {d.name}, SUM({d.amount}) FROM {joined} GROUP BY {things}.id",
    )
    yield Question(
        3,
        "who",
        f"Which {d.who}s have {deeds} of {things} with the {d.kind} '{kind}'? Give each once.",
        f"SELECT DISTINCT {d.who} FROM {joined} WHERE {d.kind} = '{kind}'",
    )
    yield Question(
        4,
        "raise",
        f"Raise the {d.size} of all {things} with the {d.kind} '{kind}' by {step}.",
        f"UPDATE {things} SET {d.size} = {d.size} + {step} WHERE {d.kind} = '{kind}'",
    )
    yield Question(
        4,
        "forget",
        f"Delete all {deeds} of the {d.who} '{person}'.",
        f"DELETE FROM {deeds} WHERE {d.who} = '{person}'",
    )
    yield Question(
        4,
        "rename",
        f"Change the {d.kind} '{kind}' to '{other}' wherever it stands in {things}.",
        f"UPDATE {things} SET {d.kind} = '{other}' WHERE {d.kind} = '{kind}'",
    )
    yield Question(
        4,
        "remove",
        f"Delete all {things} with the {d.kind} '{kind}', and first the {deeds} that refer to them.",
        f"DELETE FROM {deeds} WHERE {key} IN (SELECT id FROM {things} WHERE {d.kind} = '{kind}'); "
        f"DELETE FROM {things} WHERE {d.kind} = '{kind}'",
    )


def generate(split: str, per_question: int = 6) -> list[Task]:
    """The tasks of a split, easy ones and hard ones in turn; see `Domain` for what they are about."""
    made: list[Task] = []
    for number in range(1 if split == "starter" else per_question):
        for domain in _DOMAINS[split]:
            draw = random.Random(f"{split} {domain.things} {number}")
            for question in questions(domain, draw):
                made.append(_task(split, number, domain, question))
    return made


def _task(split: str, number: int, domain: Domain, question: Question) -> Task:
    script = domain.script(f"shown {split} {number} {question.name}")
    return Task(
        id=f"{split}/{domain.things}-{question.name}-{number}",
        split=split,
        prompt=question.ask,
        files={SCRIPT: script},
        metadata={
            "operator": f"level {question.level}",
            "level": question.level,
            "source": f"{domain.things} {question.name}",
        },
        hidden={
            "domain": domain.things,
            "reference": question.reference,
            "ordered": question.ordered,
            "write": question.level == 4,
        },
    )
