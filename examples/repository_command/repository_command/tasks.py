"""Generated tasks at three levels: move some pieces, empty a shelf, spread an item evenly over all shelves.

Train and held-out tasks are about different items.
"""

from __future__ import annotations

import json
import random
from typing import Any

from envkit import Task

#: Workspace path of the stock: item -> shelf -> count.
START = "stock.json"
_HELP = "run(['--help']) explains the program of the stock room."
_SHELVES = ("A", "B", "C")
_ITEMS = {
    "train": ("bolts", "bulbs", "cups", "forks", "hooks", "keys", "lamps", "nails", "pens", "plates"),
    "heldout": ("saws", "screws", "spades", "spoons", "stools", "tiles"),
}


def wanted(task: Task) -> dict[str, dict[str, int]]:
    """The stock at the end."""
    stock, hidden = json.loads(task.files[START]), dict[str, Any](task.hidden)
    shelves = stock[task.metadata["item"]]
    for count, source, target in hidden["moves"]:
        shelves[source] -= count
        shelves[target] += count
    return stock


def make_task(split: str, index: int, draw: random.Random) -> Task:
    """One of the tasks."""
    level = index % 3 + 1
    items = draw.sample(_ITEMS[split], 4)
    item = items[0]
    stock = {name: {shelf: draw.randrange(20, 90) for shelf in _SHELVES} for name in sorted(items)}
    source, target, other = draw.sample(_SHELVES, 3)
    if level == 1:
        count = draw.randrange(2, stock[item][source])
        moves = [[count, source, target]]
        prompt = f"Move {count} {item} from shelf {source} to shelf {target}."
    elif level == 2:
        moves = [[stock[item][source], source, target]]
        prompt = f"Shelf {source} is needed. Move all {item} from there to shelf {target}."
    else:
        each, first, second = draw.randrange(20, 80), draw.randrange(2, 19), draw.randrange(2, 19)
        stock[item] = {source: each + first + second, target: each - first, other: each - second}
        stock[item] = dict(sorted(stock[item].items()))
        moves = [[first, source, target], [second, source, other]]
        prompt = f"Move {item} between the shelves until each shelf holds the same number of them."
    return Task(
        f"{split}/level-{level}-{index}",
        split,
        f"{prompt} {_HELP}",
        {START: json.dumps(stock)},
        {"level": level, "item": item, "source": f"{split} {index}"},
        {"moves": moves},
    )
