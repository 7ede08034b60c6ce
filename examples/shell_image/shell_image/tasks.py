"""Generated tasks at three levels: delete the letters about a thing, count them, file those about two things.

Train and held-out tasks are about different things.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from envkit import Task

#: Folder of the letters, and where they are filed.
FOLDER, ARCHIVE = "inbox", "archive"
_THINGS = {
    "train": ("alder", "beech", "birch", "cedar", "cherry", "elm", "hazel", "holly", "juniper", "larch"),
    "heldout": ("maple", "oak", "olive", "pear", "pine", "poplar", "rowan", "spruce", "willow", "yew"),
}
_LINES = ("We sell {}.", "Is there any {} left?", "The {} has arrived.", "Please send us {}.", "No {} today.")


def solution(task: Task) -> str:
    """A script that solves a task."""
    hidden: Any = task.hidden
    if "count" in hidden:
        return f"grep -l {task.metadata['first']} {FOLDER}/* | wc -l > count.txt"
    letters = " ".join(f"{FOLDER}/{number}.txt" for number in hidden["letters"])
    return f"rm {letters}" if task.metadata["level"] == 1 else f"mkdir {ARCHIVE}\nmv {letters} {ARCHIVE}"


def wanted(task: Task) -> Mapping[str, bytes]:
    """The files of the workspace at the end."""
    hidden: Any = task.hidden
    files = {path: str(text).encode() for path, text in task.files.items()}
    if "count" in hidden:
        files["count.txt"] = b"%d\n" % hidden["count"]
    for number in hidden.get("letters", ()):
        letter = files.pop(f"{FOLDER}/{number}.txt")
        if task.metadata["level"] == 3:
            files[f"{ARCHIVE}/{number}.txt"] = letter
    return files


def make_task(split: str, index: int, draw: random.Random) -> Task:
    """One of the tasks."""
    level = index % 3 + 1
    things = draw.sample(_THINGS[split], 6)
    first, second = things[:2]
    about = {number: {*draw.sample(things, 3)} for number in draw.sample(range(10, 100), 9)}
    about[min(about)] |= {first, second}
    about[max(about)] -= {first, second}
    files = {
        f"{FOLDER}/{number}.txt": "".join(f"{draw.choice(_LINES).format(thing)}\n" for thing in sorted(told))
        for number, told in about.items()
    }
    needed = {first, second} if level == 3 else {first}
    letters = sorted(number for number, told in about.items() if needed <= told)
    if level == 1:
        prompt = f"Delete the files in {FOLDER} that hold the word {first}, and no others."
    elif level == 2:
        prompt = f"How many files in {FOLDER} hold the word {first}? Write the number into count.txt."
    else:
        prompt = f"Move the files in {FOLDER} that hold both {first} and {second} to a new folder {ARCHIVE}."
    return Task(
        f"{split}/level-{level}-{index}",
        split,
        f"{prompt} run() runs the script behind it, between ``` and ```.",
        files,
        {"level": level, "first": first, "source": f"{split} {index}"},
        {"count": len(letters)} if level == 2 else {"letters": letters},
    )
