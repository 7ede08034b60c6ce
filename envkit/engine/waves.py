"""Which requests are decoded together: pure functions of their number and their prompts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

#: A prompt's number of tokens, and what is equal for equal prompts.
Prompt: TypeAlias = tuple[int, Hashable]


def waves(asked: Mapping[int, Prompt], own: int, max_rows: int, max_tokens: int) -> list[list[list[int]]]:
    """Requests grouped by prompt, groups packed into waves.

    Longest prompts first, so prompts of similar length share a wave and its padding stays small.

    Args:
        asked: index of a request -> its prompt.
        own: tokens to keep of each row, beside its prompt.
        max_rows: requests of a wave, at least 1.
        max_tokens: of prompts and rows together; a wave of one row may have more.
    """
    groups: dict[Prompt, list[int]] = {}
    for index, prompt in asked.items():
        groups.setdefault(prompt, []).append(index)
    pieces: list[list[int]] = []
    for (length, _), group in groups.items():
        most = max(min(max_rows, (max_tokens - length) // own), 1)
        pieces += [group[start : start + most] for start in range(0, len(group), most)]
    pieces.sort(key=lambda piece: (-asked[piece[0]][0], -len(piece), piece[0]))
    found: list[list[list[int]]] = []
    for piece in pieces:
        if found:
            wave = found[-1]
            rows, longest = len(piece) + sum(map(len, wave)), asked[wave[0][0]][0]
            if rows <= max_rows and (len(wave) + 1) * longest + rows * own <= max_tokens:
                wave.append(piece)
                continue
        found.append([piece])
    return found


def places(stays: Sequence[bool], branches: int) -> list[int]:
    """Which row or branch goes to each place of the next step; as many as can stay where they are.

    Args:
        stays: of each row, whether it goes on.
        branches: more rows than that; they are numbered after the rows.
    """
    total = sum(stays) + branches
    found = [row if row < len(stays) and stays[row] else -1 for row in range(total)]
    late = iter([*range(total, len(stays)), *range(len(stays), len(stays) + branches)])
    coming = (row for row in late if row >= len(stays) or stays[row])
    return [next(coming) if row < 0 else row for row in found]
