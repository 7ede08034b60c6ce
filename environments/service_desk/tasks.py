"""Generates tasks at three levels of difficulty.

    1  one ticket, by its number
    2  all open tickets with one property
    3  all open tickets with two properties

Train and held-out tasks are about different places and devices.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from envkit.env.hidden import read_hidden, text_file, to_json
from envkit.types import Task

#: Workspace path of the tickets.
STORE: Final = "tickets.json"
#: Split -> place -> devices that break there.
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
PEOPLE: Final = ("Ada", "Ben", "Cleo", "Dan")
_TROUBLES: Final = ("does not start", "is too slow", "shows an error", "makes a noise", "was lost")
_TICKETS: Final = 10

Ticket = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Request:
    """One request to the agent.

    Args:
        level: 1 to 3.
        kind: part of the task's id.
        prompt: the request in words.
        applies_to: True for the open tickets to change.
        change: fields to set on them.
    """

    level: int
    kind: str
    prompt: str
    applies_to: Callable[[Ticket], bool]
    change: Mapping[str, str]


def _requests(draw: random.Random, things: Sequence[str]) -> Iterator[_Request]:
    """Fill in one request of each kind."""
    number, thing = draw.randrange(1, _TICKETS + 1), draw.choice(things)
    person, other = draw.sample(PEOPLE, 2)
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


@final
@dataclass(frozen=True, slots=True)
class TicketHidden:
    """Hidden fields of a task.

    Args:
        tickets: numbers of the tickets to change.
        change: fields to set on them.
    """

    tickets: tuple[int, ...]
    change: Mapping[str, str]

    @classmethod
    def from_task(cls, task: Task) -> TicketHidden:
        """Read a task's hidden fields.

        Raises:
            TaskFileError: the task is not one of the service desk.
        """
        text_file(task, STORE, "the tickets")
        return read_hidden(cls, task)


def generate(split: str, per_kind: int = 4) -> list[Task]:
    """Return the tasks of a split.

    Args:
        split: ``"train"``, ``"heldout"``, or ``"starter"`` for one train task of each kind.
        per_kind: tasks per place and kind.
    """
    if split == "starter":
        return generate("train", 1)[:6]
    return [
        _task(split, place, things, kind, number)
        for place, things in _PLACES[split].items()
        for number in range(per_kind)
        for kind in range(6)
    ]


def tickets_of(task: Task) -> list[Ticket]:
    """Return the tickets as they are at the start."""
    return json.loads(text_file(task, STORE, "the tickets"))["tickets"]


def changed(tickets: Sequence[Ticket], numbers: Sequence[int], change: Mapping[str, str]) -> list[Ticket]:
    """Return the tickets with a change applied to some of them."""
    return [{**ticket, **change} if ticket["number"] in numbers else ticket for ticket in tickets]


def _task(split: str, place: str, things: Sequence[str], kind: int, number: int) -> Task:
    draw = random.Random(f"{split} {place} {kind} {number}")
    while True:
        request = [*_requests(draw, things)][kind]
        tickets = [_ticket(draw, i, things) for i in range(1, _TICKETS + 1)]
        open_ = [ticket for ticket in tickets if ticket["state"] == "open"]
        chosen = [ticket["number"] for ticket in open_ if request.applies_to(ticket)]
        expected = changed(tickets, chosen, request.change)
        all_changed = changed(tickets, [ticket["number"] for ticket in open_], request.change)
        if expected not in (tickets, all_changed):  # neither no change nor changing all may be right
            break
    return Task(
        id=f"{split}/{place}-{request.kind.replace(' ', '-')}-{number}",
        split=split,
        prompt=request.prompt,
        files={STORE: json.dumps({"people": list(PEOPLE), "tickets": tickets})},
        metadata={
            "operator": f"level {request.level}",
            "level": request.level,
            "source": f"{place} {request.kind}",
        },
        hidden=to_json(TicketHidden(tuple(chosen), request.change)),
    )


def _ticket(draw: random.Random, number: int, things: Sequence[str]) -> Ticket:
    thing, trouble = draw.choice(things), draw.choice(_TROUBLES)
    return {
        "number": number,
        "state": draw.choice(("open", "open", "open", "closed")),
        "priority": draw.choice(("low", "normal", "high")),
        "owner": draw.choice(("", *PEOPLE)),
        "title": f"{thing} {trouble}",
        "text": f"The {thing} of room {draw.randrange(10, 99)} {trouble}, since day {draw.randrange(1, 30)}.",
    }
