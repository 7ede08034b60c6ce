"""Rows of several prompts or adapters as a padded rectangle, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor


@final
class Rectangle:
    """Folds rows into an equal number per owner (a prompt or an adapter), and back. Padding repeats any row.

    Shapes: R rows in any order, N owners, W rows of the owner with the most.

    Args:
        owners_R: index of each row's owner.
        owners: N; some may have no row.
        device: of the rows.
    """

    def __init__(self, owners_R: Sequence[int], owners: int, device: torch.device | str = "cpu") -> None:
        #: Rows of each owner.
        self.rows_of: list[list[int]] = [[] for _ in range(owners)]
        for row, owner in enumerate(owners_R):
            self.rows_of[owner].append(row)
        self.widest = max(map(len, self.rows_of))
        slots = [row for rows in self.rows_of for row in [*rows, *[-1] * (self.widest - len(rows))]]
        slot_of = {row: slot for slot, row in enumerate(slots)}
        #: True if the rows already form a rectangle, in order.
        self.is_rectangular = slots == [*range(len(owners_R))]
        self._rows_NW = torch.tensor(slots, device=device).clamp(min=0).view(owners, self.widest)
        self._slots_R = torch.tensor([slot_of[row] for row in range(len(owners_R))], device=device)

    def fold(self, by_row: Tensor) -> Tensor:
        """(R, ...) -> (N, W, ...); without a copy if the rows are rectangular."""
        if self.is_rectangular:
            return by_row.reshape(-1, self.widest, *by_row.shape[1:])
        return by_row[self._rows_NW]

    def unfold(self, folded: Tensor) -> Tensor:
        """(N, W, ...) -> (R, ...)."""
        by_slot = folded.flatten(0, 1)
        return by_slot if self.is_rectangular else by_slot[self._slots_R]
