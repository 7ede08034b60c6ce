"""The environment: what an agent is told, its actions, and how a lake is solved."""

from __future__ import annotations

from collections.abc import Sequence

import envkit
from envkit import Exploit, Task
from frozen_lake.lakes import MOVES, Lakes, shortest_path


def _exploits(cls: type, task: Task) -> Sequence[Exploit]:
    return [
        Exploit("says that it has arrived", ("G",)),
        Exploit("leaves the map", ("up", "left")),
        Exploit("walks to and fro", ("right", "left") * 15),
    ]


FrozenLake = envkit.wrap(
    Lakes,
    id="frozen-lake",
    system="You walk over a frozen lake. Answer with one step.",
    prompt="Walk from S to G, and not into a hole H. You are at [ ]. Say left, down, right or up.",
    max_turns=30,
    action_names=MOVES,
    oracle=shortest_path,
    exploits=classmethod(_exploits),
)
