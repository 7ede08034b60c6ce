"""Batching: pure functions that group requests into waves and assign rows to slots."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple


class RequestSize(NamedTuple):
    """Token counts of a request.

    Args:
        prompt: tokens of the shared prompt.
        prompt_key: equal for equal prompts.
        cached: tokens after the prompt whose KV state is held.
        new: tokens to prefill after those.
    """

    prompt: int
    prompt_key: Hashable
    cached: int = 0
    new: int = 0


def waves(
    sizes: Mapping[int, RequestSize], budget: int, max_rows: int, max_tokens: int
) -> list[list[list[int]]]:
    """Group requests by prompt, and pack the groups into waves that are decoded together.

    Longest prompts first, so prompts of similar length share a wave and its padding stays small.

    Args:
        sizes: by request index.
        budget: tokens that each request may draw, at least 1.
        max_rows: requests per wave, at least 1.
        max_tokens: tokens per wave, padding included. A wave of a single request may exceed it.

    Returns:
        Waves; each is a list of groups of request indices.
    """

    def tokens_per_row(rows: Iterable[int]) -> int:
        """Tokens after the prompt to reserve for each of these rows."""
        of_rows = [sizes[row] for row in rows]
        return max(size.cached for size in of_rows) + max(size.new for size in of_rows) + budget

    def tokens(wave: Sequence[Sequence[int]]) -> int:
        rows = [row for group in wave for row in group]
        return len(wave) * max(sizes[row].prompt for row in rows) + len(rows) * tokens_per_row(rows)

    groups: dict[tuple[int, Hashable], list[int]] = {}
    for index, size in sizes.items():
        groups.setdefault((size.prompt, size.prompt_key), []).append(index)
    pieces: list[list[int]] = []
    for (prompt, _), group in groups.items():
        rows = max(min(max_rows, (max_tokens - prompt) // tokens_per_row(group)), 1)
        pieces += [group[start : start + rows] for start in range(0, len(group), rows)]
    pieces.sort(key=lambda piece: (-sizes[piece[0]].prompt, -len(piece), piece[0]))
    packed: list[list[list[int]]] = []
    for piece in pieces:
        if packed:
            wave = [*packed[-1], piece]
            if sum(map(len, wave)) <= max_rows and tokens(wave) <= max_tokens:
                packed[-1] = wave
                continue
        packed.append([piece])
    return packed


def assign_slots(stays: Sequence[bool], branches: int) -> list[int]:
    """Assign the rows of the next step to slots. As many rows as possible keep theirs.

    Args:
        stays: for each row, True if it continues.
        branches: number of additional rows, numbered after the existing ones.

    Returns:
        The row or branch in each slot.
    """
    total = sum(stays) + branches
    slots = [row if row < len(stays) and stays[row] else -1 for row in range(total)]
    moving = iter(
        [row for row in range(total, len(stays)) if stays[row]] + [*range(len(stays), len(stays) + branches)]
    )
    return [next(moving) if row < 0 else row for row in slots]
