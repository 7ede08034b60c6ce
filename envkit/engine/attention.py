"""Attention layouts: one function registered with transformers, three ways to lay out a batch.

A layout travels through any transformers model as the keyword argument ``layout`` and does the
attention of every layer. So no model is rewritten, no cache class is needed, and sampling and
training share the exact arithmetic of everything else.

Shapes: N prompts, G rows per prompt, R = N * G rows, H query heads, K key/value heads, D head size,
P prompt length (right-padded), T generated tokens so far.
"""

from __future__ import annotations

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
    """A training batch as one row of tokens under an explicit mask (1, 1, S, S), True = may look."""

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=self._mask, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2)
