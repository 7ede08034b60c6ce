"""The tasks: made up from a seed, at three levels; train and held-out ones are about different things.

1  one ticket, by its number
2  all open tickets of one kind
3  all open tickets for which two things hold
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from envkit.environments.service_desk.desk import STORE
from envkit.types import Task

#: Split -> places -> the things that break there.
_PLACES: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "train": {
        "office": ("printer", "network", "password"),
        "shop": ("till", "scanner", "card reader"),
        "school": ("projector", "laptop", "whiteboard"),
        "workshop": ("drill", "lathe", "compressor"),
        "hotel": ("shower", "minibar", "key card"),
    },
    "heldout": {
        "library": ("catalogue", "copier", "gate"),
        "station": ("display", "ticket machine", "lift"),
        "clinic": ("monitor", "autoclave", "badge"),
    },
}
_PEOPLE: Final = ("Ada", "Ben", "Cleo", "Dan")
_TROUBLES: Final = ("does not start", "is too slow", "shows an error", "makes a noise", "was lost")
_TICKETS: Final = 10

Ticket = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Request:
    """What a task asks for: how hard it is, the words, which open tickets, and what is to become of them."""

    level: int
    kind: str
    words: str
    which: Callable[[Ticket], bool]
    change: Mapping[str, str]


def _requests(draw: random.Random, things: Sequence[str]) -> Iterator[_Request]:
    """One of each kind."""
    number, thing = draw.randrange(1, _TICKETS + 1), draw.choice(things)
    person, other = draw.sample(_PEOPLE, 2)
    closed, given = {"state": "closed"}, {"owner": person}

    def is_it(ticket: Ticket) -> bool:
        return ticket["number"] == number

    def is_about(ticket: Ticket) -> bool:
        return thing in ticket["title"]

    def is_others(ticket: Ticket) -> bool:
        return ticket["owner"] == other

    def is_urgent(ticket: Ticket) -> bool:
        return is_about(ticket) and ticket["priority"] == "high"

    def can_wait(ticket: Ticket) -> bool:
        return is_others(ticket) and ticket["priority"] == "low"

    about = f"every open ticket about the {thing}"
    yield _Request(1, "close one", f"Close ticket {number}.", is_it, closed)
    yield _Request(1, "give one", f"Give ticket {number} to {person}.", is_it, given)
    yield _Request(2, "close about", f"Close {about}.", is_about, closed)
    yield _Request(2, "hand over", f"Give every open ticket that {other} has to {person}.", is_others, given)
    yield _Request(3, "urgent", f"Give {about} that has priority high to {person}.", is_urgent, given)
    yield _Request(
        3, "tidy up", f"Close every open ticket that {other} has with low priority.", can_wait, closed
    )


def generate(split: str, each: int = 4) -> list[Task]:
    """All tasks of a split; ``"starter"`` gives one of each kind to train on.

    Args:
        split: ``"train"``, ``"heldout"`` or ``"starter"``.
        each: tasks of each place and kind.
    """
    if split == "starter":
        return generate("train", 1)[:6]
    return [
        _task(split, place, things, kind, number)
        for place, things in _PLACES[split].items()
        for number in range(each)
        for kind in range(6)
    ]


def tickets_of(task: Task) -> list[Ticket]:
    """The tickets as they are at first."""
    return json.loads(task.files[STORE])["tickets"]


def changed(tickets: Sequence[Ticket], numbers: Sequence[int], change: Mapping[str, str]) -> list[Ticket]:
    """The tickets after a change of some of them."""
    return [{**each, **change} if each["number"] in numbers else each for each in tickets]


def _task(split: str, place: str, things: Sequence[str], kind: int, number: int) -> Task:
    draw = random.Random(f"{split} {place} {kind} {number}")
    while True:
        request = [*_requests(draw, things)][kind]
        tickets = [_ticket(draw, i, things) for i in range(1, _TICKETS + 1)]
        opened = [each for each in tickets if each["state"] == "open"]
        chosen = [each["number"] for each in opened if request.which(each)]
        wanted = changed(tickets, chosen, request.change)
        everything = changed(tickets, [each["number"] for each in opened], request.change)
        if wanted not in (tickets, everything):  # neither doing nothing nor doing it to all may be right
            break
    return Task(
        id=f"{split}/{place}-{request.kind.replace(' ', '-')}-{number}",
        split=split,
        prompt=request.words,
        files={STORE: json.dumps({"people": list(_PEOPLE), "tickets": tickets})},
        metadata={
            "operator": f"level {request.level}",
            "level": request.level,
            "source": f"{place} {request.kind}",
        },
        hidden={"tickets": chosen, "change": request.change},  # never enters a sandbox
    )


def _ticket(draw: random.Random, number: int, things: Sequence[str]) -> Ticket:
    thing, trouble = draw.choice(things), draw.choice(_TROUBLES)
    return {
        "number": number,
        "state": draw.choice(("open", "open", "open", "closed")),
        "priority": draw.choice(("low", "normal", "high")),
        "owner": draw.choice(("", *_PEOPLE)),
        "title": f"{thing} {trouble}",
        "text": f"The {thing} of room {draw.randrange(10, 99)} {trouble}, since day {draw.randrange(1, 30)}.",
    }
