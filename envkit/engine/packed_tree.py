"""The attention layout of training: a prompt and a tree of answers, packed into one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from envkit.engine.tree_attention import tree_attention


def rows_of(table_SE: Tensor, index: Tensor) -> Tensor:
    """Index the rows of a table, with a deterministic gradient.

    On a CPU, several threads add up the gradient of plain indexing in any order. Here, every thread has its
    own rows.
    """
    return torch.nn.functional.embedding(index, table_SE)


@final
class PackedTree:
    """A training batch as one sequence of S tokens: a prompt of P tokens, then a tree of answers.

    A path through the tree attends to the prompt and to itself. Paths are attended as a padded batch, so the
    work is R * C * (P + C) for R paths of up to C tokens, and no (S, S) mask is made. All but attention is
    computed once per token.

    Args:
        prompt: P.
        paths: indices in S of each path's tokens after the prompt. Every index is in at least one path.
        device: of the tokens.
    """

    def __init__(
        self, prompt: int, paths: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> None:
        self._prompt, self._rows = prompt, len(paths)
        longest = max(map(len, paths), default=0)
        # Padding repeats the first token. It lies to the right of all real tokens, which cannot see it.
        padded = [[*path, *[path[0]] * (longest - len(path))] for path in paths]
        self._index_RC = torch.tensor(padded, dtype=torch.long, device=device).view(self._rows, longest)
        # A token shared by several paths has the same output in each; any of them will do.
        slots = {
            token: row * longest + offset
            for row, path in enumerate(paths)
            for offset, token in enumerate(path)
        }
        in_order = [slots[token] for token in sorted(slots)]
        self._slots = torch.tensor(in_order, dtype=torch.long, device=device)
        self._mask = torch.ones(longest, prompt + longest, dtype=torch.bool, device=device).tril(prompt)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        heads, (kv, _, size), prompt, rows = query.shape[1], key.shape[1:], self._prompt, self._rows

        def by_path(part: Tensor) -> Tensor:
            """(1, K * G, S, D) -> (K, R, G, C, D)."""
            flat = part[0].transpose(0, 1).flatten(1)
            return (
                rows_of(flat, self._index_RC)
                .view(rows, -1, kv, part.shape[1] // kv, size)
                .permute(2, 0, 3, 1, 4)
            )

        first = scaled_dot_product_attention(
            query[:, :, :prompt],
            key[:, :, :prompt],
            value[:, :, :prompt],
            is_causal=True,
            scale=scale,
            enable_gqa=True,
        )
        first = first.transpose(1, 2)
        if not rows:
            return first
        later = tree_attention(
            by_path(query),
            key[0, :, :prompt],
            value[0, :, :prompt],
            by_path(key)[:, :, 0],
            by_path(value)[:, :, 0],
            scale,
        )
        later = later.permute(1, 3, 0, 2, 4).reshape(-1, heads, size)[self._slots]  # (S - P, H, D), in order
        return torch.cat([first[0], later])[None]
