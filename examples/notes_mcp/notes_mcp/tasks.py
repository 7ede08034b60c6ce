"""Generated tasks at three levels: delete a note, delete all notes about a person, add up what a person owes.

Train and held-out tasks are about different people.
"""

from __future__ import annotations

import json
import random
from typing import Any

from envkit import Task

#: Workspace path of the notes: number -> text.
START = "notes.json"
_PEOPLE = {
    "train": ("Ada Abel", "Ben Brook", "Cleo Cross", "Dan Dale", "Eva Elm", "Finn Ford", "Ida Isle"),
    "heldout": ("Kim Kerr", "Lea Lund", "Max Moor", "Nia North", "Otto Olsen"),
}
_THINGS = ("paper", "lunch", "a taxi", "stamps", "tools", "paint", "a lamp", "tea", "flowers", "a chair")


def notes_of(task: Task) -> dict[int, str]:
    """The notes at the start, by number."""
    return {int(number): text for number, text in json.loads(task.files[START]).items()}


def wanted(task: Task) -> list[str]:
    """The texts of the notes at the end."""
    hidden: Any = task.hidden
    kept = [text for number, text in notes_of(task).items() if number not in hidden["deleted"]]
    return [*kept, *map(str, hidden["added"])]


def make_task(split: str, index: int, draw: random.Random) -> Task:
    """One of the tasks."""
    level = index % 3 + 1
    people = draw.sample(_PEOPLE[split], 3)
    debts = [(person, thing) for person in people for thing in draw.sample(_THINGS, 3)]
    draw.shuffle(debts)
    amounts = [draw.randrange(11, 400) for _ in debts]
    notes = {
        number: f"{person} owes us {amount} for {thing}."
        for number, (person, thing), amount in zip(
            sorted(draw.sample(range(100, 1000), len(debts))), debts, amounts, strict=True
        )
    }
    person, thing = debts[0] if level == 1 else (people[0], "")
    theirs = [number for number, text in notes.items() if text.startswith(person)]
    deleted: list[int] = []
    added: list[int] = []
    if level == 1:
        deleted = [number for number in theirs if notes[number].endswith(f"{thing}.")]
        prompt = f"{person} has paid for {thing}. Delete the note about it."
    elif level == 2:
        deleted = theirs
        prompt = f"{person} has paid for everything. Delete all notes about {person}, and no others."
    else:
        added = [sum(amounts[at] for at, debt in enumerate(debts) if debt[0] == person)]
        prompt = f"How much does {person} owe us in all? Add a note with nothing but this number."
    return Task(
        f"{split}/level-{level}-{index}",
        split,
        prompt,
        {START: json.dumps(notes)},
        {"level": level, "person": person, "source": f"{split} {index}"},
        {"deleted": deleted, "added": added},
    )
