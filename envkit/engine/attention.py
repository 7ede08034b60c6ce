"""Attention layouts: one function registered with transformers, three ways to lay out a batch.

A layout travels through any transformers model as the keyword argument ``layout`` and does the
attention of every layer. So no model is rewritten, no cache class is needed, and sampling and
training share the exact arithmetic of everything else.

Shapes: N prompts, G rows per prompt, R = N * G rows, H query heads, K key/value heads, D head size,
P prompt length (right-padded), T generated tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from envkit.errors import ModelError

NAME = "envkit_layout"

#: Departures from plain causal attention that some models ask for.
_NOT_DONE = ("sliding_window", "softcap", "s_aux")


class Layout(Protocol):
    """Does the attention of one forward pass, layer by layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend with ``query`` (B, H, S, D) over ``key``/``value`` (B, K, S, D); returns (B, S, H, D)."""
        ...


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    if unknown := [name for name in _NOT_DONE if kwargs.get(name) is not None]:
        raise ModelError(f"this model's attention uses {unknown[0]}, which envkit does not do; use another")
    layout: Layout = kwargs["layout"]
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return layout.attend(module.layer_idx, query, key, value, scale), None


def register() -> str:
    """Register with transformers' attention interface; returns the implementation's name."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    return NAME


@final
class Prefill:
    """Keys and values of N prompts, right-padded to P, kept for decoding; filled piece by piece.

    Args:
        prompts: N.
        longest: P, the padded length.
    """

    def __init__(self, prompts: int, longest: int) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._prompts, self._longest = prompts, longest
        #: Which prompts the next forward pass brings.
        self.piece = slice(0, prompts)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if layer == len(self.keys):
            shape = (self._prompts, key.shape[1], self._longest, key.shape[3])
            self.keys.append(key.new_zeros(shape))
            self.values.append(value.new_zeros(shape))
        self.keys[layer][self.piece, :, : key.shape[2]] = key
        self.values[layer][self.piece, :, : key.shape[2]] = value
        # Right padding needs no mask: a real position never looks to its right.
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)


@final
class Decode:
    """One new token for each of N x G rows: shared prompt keys, own suffix keys, one softmax.

    Args:
        prefix: the wave's prefill.
        lengths_N: real prompt lengths.
        rows: G, rows per prompt.
        max_new: suffix slots to reserve.
    """

    def __init__(self, prefix: Prefill, lengths_N: Tensor, rows: int, max_new: int) -> None:
        self._prefix_keys, self._prefix_values = prefix.keys, prefix.values
        self._prompts, heads, longest, size = prefix.keys[0].shape
        self._rows = rows
        shape = (self._prompts * rows, heads, max_new, size)
        self._keys = [k.new_empty(shape) for k in prefix.keys]
        self._values = [v.new_empty(shape) for v in prefix.values]
        padding_NP = torch.arange(longest, device=lengths_N.device)[None] >= lengths_N[:, None]
        self._bias = torch.zeros(padding_NP.shape, dtype=prefix.keys[0].dtype, device=lengths_N.device)
        self._bias.masked_fill_(padding_NP, float("-inf"))
        self.step = 0

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        total, heads, _, size = query.shape
        prompts, rows, kv = self._prompts, self._rows, key.shape[1]
        share, longest, now = heads // kv, self._bias.shape[1], self.step + 1
        self._keys[layer][:, :, self.step] = key[:, :, 0]
        self._values[layer][:, :, self.step] = value[:, :, 0]
        own_keys, own_values = self._keys[layer][:, :, :now], self._values[layer][:, :, :now]

        def fold(by_row: Tensor) -> Tensor:
            """(R, K, share, X) -> (N, K, G * share, X): a prompt's keys are read once for all its rows."""
            by_row = by_row.view(prompts, rows, kv, share, -1).transpose(1, 2)
            return by_row.reshape(prompts, kv, rows * share, -1)

        def unfold(folded: Tensor) -> Tensor:
            folded = folded.view(prompts, kv, rows, share, -1).transpose(1, 2)
            return folded.reshape(total, kv, share, -1)

        query = (query * scale).view(total, kv, share, size)
        shared = fold(query) @ self._prefix_keys[layer].transpose(-1, -2) + self._bias[:, None, None]
        own = fold(query @ own_keys.transpose(-1, -2))
        weights = torch.cat([shared, own], dim=-1).softmax(dim=-1)
        out = unfold(weights[..., :longest] @ self._prefix_values[layer])
        out = out + unfold(weights[..., longest:]) @ own_values
        return out.reshape(total, 1, heads, size)

    def keep(self, prompts_n: Tensor, slots_r: Tensor) -> None:
        """Go on with these prompts and rows only; ``slots_r`` lists n * G' rows, prompt by prompt."""
        self._prompts, self._rows = len(prompts_n), len(slots_r) // len(prompts_n)
        self._bias = self._bias[prompts_n]
        for layer in range(len(self._keys)):
            self._keys[layer], self._values[layer] = self._keys[layer][slots_r], self._values[layer][slots_r]
            self._prefix_keys[layer] = self._prefix_keys[layer][prompts_n]
            self._prefix_values[layer] = self._prefix_values[layer][prompts_n]


@final
class Packed:
    """A training batch in one sequence: a prompt of P tokens, then R rows that see it and themselves.

    Rows attend as a padded batch over prompt and own keys, so the work is R * C * (P + C) and no
    (S, S) mask is ever made.

    Args:
        prompt: P.
        lengths: tokens of each row, in order; their sum is S - P.
    """

    def __init__(self, prompt: int, lengths: Sequence[int]) -> None:
        longest = max(lengths)
        starts_R1 = torch.tensor([prompt + sum(lengths[:row]) for row in range(len(lengths))])[:, None]
        offsets_1C = torch.arange(longest)[None]
        self._prompt = prompt
        self._real_RC = offsets_1C < torch.tensor(lengths)[:, None]
        # Padding repeats the first token: it lies to the right of every real one, who never look there.
        self._index_RC = torch.where(self._real_RC, starts_R1 + offsets_1C, starts_R1)
        causal_CC = torch.ones(longest, longest, dtype=torch.bool).tril()
        self._mask = torch.cat([torch.ones(longest, prompt, dtype=torch.bool), causal_CC], dim=1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        rows, prompt = len(self._index_RC), self._prompt
        # Heads are repeated by hand: with enable_gqa the CPU falls back to a slow kernel.
        share = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(share, dim=1), value.repeat_interleave(share, dim=1)

        def own(part: Tensor) -> Tensor:
            """(1, H, S, D) -> (R, H, C, D)."""
            return part[0, :, self._index_RC].transpose(0, 1)

        def over(part: Tensor) -> Tensor:
            """(1, H, S, D) -> (R, H, P + C, D)."""
            return torch.cat([part[:, :, :prompt].expand(rows, -1, -1, -1), own(part)], dim=2)

        first = scaled_dot_product_attention(
            query[:, :, :prompt], key[:, :, :prompt], value[:, :, :prompt], is_causal=True, scale=scale
        )
        later = scaled_dot_product_attention(
            own(query), over(key), over(value), attn_mask=self._mask, scale=scale
        )
        later = later.transpose(1, 2)[self._real_RC]  # (S - P, H, D), rows in order
        return torch.cat([first[0].transpose(0, 1), later])[None]
