"""The attention layouts of training: a prompt, and a tree of answers that continue it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from envkit.engine.attention.tree import tree_attention


def rows_of(table_SE: Tensor, index: Tensor) -> Tensor:
    """Index the rows of a table, with a deterministic gradient.

    On a CPU, several threads add up the gradient of plain indexing in any order. Here, every thread has its
    own rows.
    """
    return torch.nn.functional.embedding(index, table_SE)


@final
class PromptLayout:
    """One prompt of P tokens. Keys and values (K, P, D) of every layer are kept, with their gradient."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.keys.append(key[0])
        self.values.append(value[0])
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)


@final
class TreeLayout:
    """A tree of answers to one prompt, as one sequence of S tokens.

    A path through the tree attends to the prompt and to itself. Paths are attended as a padded batch, so the
    work is R * C * (P + C) for R paths of up to C tokens, and no (S, S) mask is made. All but attention is
    computed once per token.

    Args:
        keys, values: of the prompt, for every layer; see `PromptLayout`.
        paths: indices in S of each path's tokens; at least one. Every index is in at least one path.
    """

    def __init__(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], paths: Sequence[Sequence[int]]
    ) -> None:
        self._keys, self._values = keys, values
        device, longest = keys[0].device, max(map(len, paths))
        # Padding repeats the first token. It lies to the right of all real tokens, which cannot see it.
        padded = [[*path, *[path[0]] * (longest - len(path))] for path in paths]
        self._index_RC = torch.tensor(padded, device=device)
        # A token shared by several paths has the same output in each; any of them will do.
        slots = {
            token: row * longest + offset
            for row, path in enumerate(paths)
            for offset, token in enumerate(path)
        }
        self._slots_S = torch.tensor([slots[token] for token in range(len(slots))], device=device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        rows, longest = self._index_RC.shape
        heads, (kv, _, size) = query.shape[1], key.shape[1:]

        def by_path(part: Tensor) -> Tensor:
            """(1, K * G, S, D) -> (K, R, G, C, D)."""
            flat_SE = part[0].transpose(0, 1).flatten(1)
            by_token = rows_of(flat_SE, self._index_RC).view(rows, longest, kv, -1, size)
            return by_token.permute(2, 0, 3, 1, 4)

        own_key, own_value = by_path(key)[:, :, 0], by_path(value)[:, :, 0]
        shared_key, shared_value = self._keys[layer], self._values[layer]
        out = tree_attention(by_path(query), shared_key, shared_value, own_key, own_value, scale)
        by_slot = out.permute(1, 3, 0, 2, 4).reshape(rows * longest, heads, size)
        return by_slot[self._slots_S][None]
