"""Which requests are decoded together: pure functions of their number and their prompts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

#: A prompt's number of tokens, and what is equal for equal prompts.
Prompt: TypeAlias = tuple[int, Hashable]

#: Compaction copies the rows' own keys; it pays once this share of them has finished.
_COMPACT_BELOW = 0.75


def waves(asked: Mapping[int, Prompt], max_rows: int) -> list[list[list[int]]]:
    """Requests grouped by prompt, groups packed into waves of at most ``max_rows`` rectangle slots.

    Longest prompts first, so prompts of similar length share a wave and its padding stays small.

    Args:
        asked: index of a request -> its prompt.
        max_rows: at least 1.
    """
    groups: dict[Prompt, list[int]] = {}
    for index, prompt in asked.items():
        groups.setdefault(prompt, []).append(index)
    pieces = [
        group[start : start + max_rows]
        for group in groups.values()
        for start in range(0, len(group), max_rows)
    ]
    pieces.sort(key=lambda piece: (-asked[piece[0]][0], -len(piece), piece[0]))
    found: list[list[list[int]]] = []
    for piece in pieces:
        if found:
            widest = max(len(piece), *map(len, found[-1]))
            if widest * (len(found[-1]) + 1) <= max_rows:
                found[-1].append(piece)
                continue
        found.append([piece])
    return found


def compact(owners: Sequence[int], rows: int) -> tuple[list[int], list[int]] | None:
    """Which prompts and slots to go on with, as a smaller rectangle; ``None`` while it does not pay.

    Args:
        owners: the request of each slot, -1 where nobody needs it, prompt by prompt.
        rows: slots per prompt.
    """
    alive = {
        prompt: live
        for prompt in range(len(owners) // rows)
        if (live := [s for s in range(prompt * rows, (prompt + 1) * rows) if owners[s] >= 0])
    }
    widest = max(map(len, alive.values()))
    if widest * len(alive) > _COMPACT_BELOW * len(owners):
        return None
    # A group with fewer rows than the widest is filled with copies of its first.
    slots = [slot for live in alive.values() for slot in [*live, *[live[0]] * (widest - len(live))]]
    return list(alive), slots


def reown(owners: Sequence[int], slots: Sequence[int]) -> list[int]:
    """Owners after compaction; a slot's copies, which only fill the rectangle, belong to nobody."""
    seen: set[int] = set()
    result: list[int] = []
    for slot in slots:
        result.append(-1 if slot in seen else owners[slot])
        seen.add(slot)
    return result
