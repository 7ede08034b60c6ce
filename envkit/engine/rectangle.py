"""Rows of several prompts as a rectangle of prompts and rows, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor


@final
class Rectangle:
    """Folds rows into as many for each prompt, and back: what a prompt lacks repeats any row.

    Shapes: R rows in any order, N prompts, W rows of the prompt that has the most.

    Args:
        prompts_R: number of each row's prompt.
        prompts: N; some may have no row.
        device: where the rows are.
    """

    def __init__(self, prompts_R: Sequence[int], prompts: int, device: torch.device | str = "cpu") -> None:
        rows_of: list[list[int]] = [[] for _ in range(prompts)]
        place_R: list[int] = []
        for row, prompt in enumerate(prompts_R):
            place_R.append(len(rows_of[prompt]))
            rows_of[prompt].append(row)
        self.widest = max(map(len, rows_of))
        rows_NW = [[*mine, *[0] * (self.widest - len(mine))] for mine in rows_of]
        # Tensors only: of numbers, whoever compiles this would make them part of the code.
        self._rows_NW = torch.tensor(rows_NW, device=device)
        self._prompts_R = torch.tensor([*prompts_R], device=device)
        self._place_R = torch.tensor(place_R, device=device)

    def fold(self, by_row: Tensor) -> Tensor:
        """(R, ...) -> (N, W, ...)."""
        return by_row[self._rows_NW]

    def unfold(self, folded: Tensor) -> Tensor:
        """(N, W, ...) -> (R, ...)."""
        return folded[self._prompts_R, self._place_R]
