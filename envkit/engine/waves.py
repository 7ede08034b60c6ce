"""Which requests are decoded together: pure functions of their number and their prompts."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple


class Asked(NamedTuple):
    """What a request brings to a wave.

    Args:
        prompt: tokens of its prompt.
        same: equal for equal prompts.
        kept: tokens held of it behind the prompt.
        added: tokens to read behind those.
    """

    prompt: int
    same: Hashable
    kept: int = 0
    added: int = 0


def waves(asked: Mapping[int, Asked], budget: int, max_rows: int, max_tokens: int) -> list[list[list[int]]]:
    """Indices of requests grouped by prompt, groups packed into waves.

    Longest prompts first, so prompts of similar length share a wave and its padding stays small.

    Args:
        asked: by the index of each request.
        budget: tokens that each may draw, at least 1.
        max_rows: requests of a wave, at least 1.
        max_tokens: for which a wave has room, padding included; one of a single request may have more.
    """

    def own(rows: Iterable[int]) -> int:
        """Tokens behind the prompt for which each of these rows has room."""
        some = [asked[row] for row in rows]
        return max(one.kept for one in some) + max(one.added for one in some) + budget

    def tokens(wave: Sequence[Sequence[int]]) -> int:
        rows = [row for group in wave for row in group]
        return len(wave) * max(asked[row].prompt for row in rows) + len(rows) * own(rows)

    groups: dict[tuple[int, Hashable], list[int]] = {}
    for index, one in asked.items():
        groups.setdefault((one.prompt, one.same), []).append(index)
    pieces: list[list[int]] = []
    for (prompt, _), group in groups.items():
        most = max(min(max_rows, (max_tokens - prompt) // own(group)), 1)
        pieces += [group[start : start + most] for start in range(0, len(group), most)]
    pieces.sort(key=lambda piece: (-asked[piece[0]].prompt, -len(piece), piece[0]))
    found: list[list[list[int]]] = []
    for piece in pieces:
        if found:
            wave = [*found[-1], piece]
            if sum(map(len, wave)) <= max_rows and tokens(wave) <= max_tokens:
                found[-1] = wave
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
