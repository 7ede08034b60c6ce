"""Attention layouts: one attention function for transformers, and two ways to lay out a batch for sampling.

A layout is passed through any transformers model as the keyword argument ``layout``, and computes the
attention of every layer. So no model code is rewritten and no cache class is needed. The linear layers are
replaced in `envkit.engine.adapters.lora`.

Shapes: N prompts, R rows of them, H query heads, K key/value heads, D head size, P prompt length
(right-padded), S new tokens, T slots of a row's own tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from envkit.engine.attention.rectangle import Rectangle
from envkit.errors import ModelError

NAME = "envkit_layout"

#: Drop unused prompts from the prefix when at most this share is still in use. Dropping copies the others.
_DROP_BELOW = 0.75

#: Features of some models' attention that envkit does not support.
_UNSUPPORTED_FEATURES = ("sliding_window", "softcap", "s_aux")
UNSUPPORTED_LAYERS = (
    "this model has layers without attention, or values of another size than its keys, which envkit does not "
    "support; use another model"
)


class Layout(Protocol):
    """Computes the attention of one forward pass, layer by layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend with ``query`` (B, H, S, D) over ``key``/``value`` (B, K, S, D); returns (B, S, H, D)."""
        ...


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    if unknown := [name for name in _UNSUPPORTED_FEATURES if kwargs.get(name) is not None]:
        raise ModelError(
            f"this model's attention uses {unknown[0]}, which envkit does not support; use another model"
        )
    layout: Layout | None = kwargs.get("layout")
    if layout is None:
        raise ModelError(
            "this model does not pass keyword arguments to its attention, which envkit needs; "
            "use another model"
        )
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return layout.attend(module.layer_idx, query, key, value, scale), None


def register() -> str:
    """Register with transformers' attention interface; returns the implementation's name."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    return NAME


@final
class PrefillLayout:
    """KV cache of N prompts, right-padded to P tokens. It is filled in chunks and then used for decoding.

    Args:
        prompts: N.
        longest: P.
    """

    def __init__(self, prompts: int, longest: int) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._prompts, self._longest = prompts, longest
        self.select(slice(0, prompts))

    @property
    def tokens(self) -> int:
        """Number of tokens that it holds, padding included."""
        return self._prompts * self._longest

    @classmethod
    def of(cls, prompts: Sequence[tuple[PrefillLayout, int, int]]) -> PrefillLayout:
        """Join prompts of earlier prefills; each comes with its index there and its unpadded length."""
        first, longest = prompts[0][0], max(length for _, _, length in prompts)
        sources = [(prefill, number) for prefill, number, _ in prompts]
        if longest == first._longest and sources == [(first, number) for number in range(len(first.keys[0]))]:
            return first
        merged = cls(len(prompts), longest)

        def stack(rows: Iterable[Tensor]) -> Tensor:
            return torch.stack([pad(row, (0, 0, 0, longest - row.shape[1])) for row in rows])

        for layer in range(len(first.keys)):
            keys = (prefill.keys[layer][number, :, :end] for prefill, number, end in prompts)
            values = (prefill.values[layer][number, :, :end] for prefill, number, end in prompts)
            merged.keys.append(stack(keys))
            merged.values.append(stack(values))
        return merged

    def select(self, prompts: slice) -> None:
        """Select the prompts of the next forward pass. At first, all are selected."""
        self._selected = prompts
        #: The prompt of each selected row.
        self.prompts: Sequence[int] = range(prompts.start, prompts.stop)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if layer == len(self.keys) and key.shape == value.shape:
            shape = (self._prompts, key.shape[1], self._longest, key.shape[3])
            self.keys.append(key.new_zeros(shape))
            self.values.append(value.new_zeros(shape))
        if layer >= len(self.keys):
            raise ModelError(UNSUPPORTED_LAYERS)
        self.keys[layer][self._selected, :, : key.shape[2]] = key
        self.values[layer][self._selected, :, : key.shape[2]] = value
        # Right padding needs no mask: causal attention never looks right.
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)


def context_length(config: Any) -> int:
    """Tokens that a transformers model reads at most; ``sys.maxsize`` if its configuration names no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", 0) or sys.maxsize


def require_plain(model: Any) -> None:
    """Refuse a model that the layouts cannot reproduce; otherwise switch it to the layouts' attention.

    Engine and learner would agree with each other, but not with the model as transformers runs it.

    Raises:
        ModelError: a layer is not plain attention, position embeddings depend on other rows, or the logits
            are not simply the head's output.
    """
    kinds = {str(getattr(module, "rope_type", "default")) for module in model.modules()}
    if dynamic := [kind for kind in sorted(kinds) if "dynamic" in kind or "longrope" in kind]:
        raise ModelError(
            f"this model's positions ({dynamic[0]}) depend on the longest row of a batch; use another model"
        )
    ids, decoder = torch.arange(3, device=model.device)[None], model.get_decoder()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    layout = PrefillLayout(1, ids.shape[1])
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
        head_output = model.get_output_embeddings()(decoder(**inputs, use_cache=False).last_hidden_state)
        model.set_attn_implementation(register())
        decoder(input_ids=ids, position_ids=ids, use_cache=False, layout=layout)
    if len(layout.keys) != model.config.get_text_config().num_hidden_layers:
        raise ModelError(UNSUPPORTED_LAYERS)
    if not torch.allclose(head_output.float(), logits.float(), equal_nan=True):
        raise ModelError(
            "this model scales or caps its logits, which envkit does not support; use another model"
        )


def partial_attention(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention over a part of the keys, and the logarithm of its softmax's denominator, to join parts by.

    Args:
        query: (B, K, Q, D).
        keys, values: (B, K, T, D).
        bias: added to the scores (B, K, Q, T), to which it broadcasts; leaves every query at least one key.
        scale: of the scores.

    Returns:
        (B, K, Q, D) in the dtype of ``query``, and (B, K, Q) in float32.
    """
    if query.device.type != "cpu":
        return partial_in_steps(query, keys, values, bias, scale)
    # Public functions of PyTorch do not return the denominator.
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mask = None if bias is None else bias.expand(len(query), 1, query.shape[2], -1)
    return fused(query, keys, values, 0.0, False, attn_mask=mask, scale=scale)


def partial_in_steps(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Like the fused operation of a CPU, on any device."""
    # Not (query @ keys).float(): a product in bfloat16 is rounded to three digits.
    scores = query.float() @ keys.float().transpose(-1, -2) * scale
    scores = scores if bias is None else scores + bias
    mass = scores.logsumexp(dim=-1)
    return (scores - mass[..., None]).exp().to(values.dtype) @ values, mass


@dataclass(frozen=True, slots=True)
class RowCache:
    """KV cache of one row's L tokens after the shared prompt: keys and values (K, L, D) of each layer."""

    keys: list[Tensor]
    values: list[Tensor]

    def __len__(self) -> int:
        return self.keys[0].shape[1]


@final
class DecodeLayout:
    """Decodes rows of N prompts: attention over the shared prompt's keys and a row's own, in one softmax.

    All rows write their own keys into the same slots, so that one step writes one slice. Slots that a row
    leaves empty are masked for it.

    Args:
        prefix: KV cache of the prompts.
        lengths_N: unpadded prompt lengths.
        prompts_R: index of each row's prompt, ascending.
        room: largest number of rows.
        slots: own tokens to reserve per row.
    """

    def __init__(
        self, prefix: PrefillLayout, lengths_N: Tensor, prompts_R: Sequence[int], room: int, slots: int
    ) -> None:
        self._prefix_keys, self._prefix_values = prefix.keys, prefix.values
        count, heads, longest, size = prefix.keys[0].shape
        self._keys = [keys.new_empty(room, heads, slots, size) for keys in prefix.keys]
        self._values = [values.new_empty(room, heads, slots, size) for values in prefix.values]
        padding_NP = torch.arange(longest, device=lengths_N.device)[None] >= lengths_N[:, None]
        self._bias_NP = torch.zeros(padding_NP.shape, dtype=prefix.keys[0].dtype, device=lengths_N.device)
        self._bias_NP.masked_fill_(padding_NP, float("-inf"))
        #: Masks empty slots; ``None`` while there are none.
        self._own_bias_RT: Tensor | None = None
        self.used = 0
        #: The prompts still in use, and the position of each row's prompt among them.
        self._in_use, self._prompts_R = [*range(count)], [*prompts_R]
        self.select(slice(0, len(self._prompts_R)))

    def select(self, rows: slice) -> None:
        """Select the rows of the next forward pass: all, or a part before the first `reorder`."""
        self._selected, prompts = rows, self._prompts_R[rows]
        has_all = len(prompts) == len(self._prompts_R)
        first, last = (0, len(self._in_use) - 1) if has_all else (prompts[0], prompts[-1])
        #: The prompt of each selected row.
        self.prompts = [self._in_use[prompt] for prompt in prompts]
        #: The prompts of the selected rows, among those in use.
        self._prompt_slice = slice(first, last + 1)
        count = last + 1 - first
        self._rectangle = Rectangle([prompt - first for prompt in prompts], count, self._bias_NP.device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        total, heads, fresh, size = query.shape
        kv, end = key.shape[1], self.used + key.shape[2]
        share = heads // kv
        rectangle, prompts = self._rectangle, self._prompt_slice
        keys, values = self._keys[layer][self._selected], self._values[layer][self._selected]
        keys[:, :, self.used : end], values[:, :, self.used : end] = key, value

        def fold(by_row: Tensor) -> Tensor:
            """(R, K, share * S, X) -> (N, K, W * share * S, X): a prompt's keys are read once."""
            return rectangle.fold(by_row).transpose(1, 2).flatten(2, 3)

        def unfold(folded: Tensor) -> Tensor:
            folded = folded.reshape(len(folded), kv, rectangle.widest, share * fresh, -1)
            return rectangle.unfold(folded.transpose(1, 2))

        query = query.reshape(total, kv, share * fresh, size)
        bias_NP = self._bias_NP[prompts, None, None]
        prefix_keys, prefix_values = self._prefix_keys[layer][prompts], self._prefix_values[layer][prompts]
        over_prompt, prompt_mass = partial_attention(fold(query), prefix_keys, prefix_values, bias_NP, scale)
        bias = self._own_bias(fresh, share)
        over_own, own_mass = partial_attention(query, keys[:, :, :end], values[:, :, :end], bias, scale)
        # The prompt's share of a softmax over both.
        part = torch.sigmoid(unfold(prompt_mass[..., None]) - own_mass[..., None])
        out = torch.lerp(over_own.float(), unfold(over_prompt).float(), part).to(query.dtype)
        return out.reshape(total, heads, fresh, size).transpose(1, 2)

    def _own_bias(self, fresh: int, share: int) -> Tensor | None:
        """Bias of the selected rows' own scores (R, 1, share * S, T); ``None`` if they see all of them."""
        end, bias = self.used + fresh, None
        if self._own_bias_RT is not None:
            bias = self._own_bias_RT[self._selected, None, None, :end]
        if fresh == 1:
            return bias
        later_SS = torch.ones(fresh, fresh, dtype=torch.bool, device=self._bias_NP.device).triu(1)
        causal_ST = self._bias_NP.new_zeros(fresh, end)
        causal_ST[:, self.used :].masked_fill_(later_SS, float("-inf"))
        causal = causal_ST.repeat(share, 1)[None, None]
        return causal if bias is None else causal + bias

    def advance(self, lengths: Sequence[int] | None = None) -> None:
        """Advance by one token per row, or by ``lengths`` tokens, padded on the right."""
        if lengths is None:
            self.used += 1
            return
        for row, length in enumerate(lengths):
            if length < max(lengths):
                empty = slice(self.used + length, self.used + max(lengths))
                self._mask(row, empty.start, empty.stop)
                for buffer in (*self._keys, *self._values):
                    buffer[row, :, empty] = 0  # masked slots must be finite
        self.used += max(lengths)

    def restore(self, rows: Sequence[RowCache]) -> None:
        """Restore the rows' own KV caches. Call it before the first forward pass."""
        longest = max(map(len, rows))
        for row, cache in enumerate(rows):
            for layer in range(len(self._keys)):
                for buffers, cached in ((self._keys, cache.keys), (self._values, cache.values)):
                    buffers[layer][row, :, : len(cache)] = cached[layer]
                    # Masked slots must be finite: 0 times infinity is not a number.
                    buffers[layer][row, :, len(cache) : longest] = 0
            if len(cache) < longest:
                self._mask(row, len(cache), longest)
        self.used = longest

    def row_cache(self, row: int) -> RowCache:
        """Copy a row's own KV cache."""
        if self._own_bias_RT is None:
            chosen: Any = slice(0, self.used)
        else:
            chosen = (self._own_bias_RT[row, : self.used] == 0).nonzero()[:, 0]
        keys, values = (
            [part[row, :, chosen].clone() for part in parts] for parts in (self._keys, self._values)
        )
        return RowCache(keys, values)

    def reorder(self, rows: Sequence[int]) -> None:
        """Continue with these rows, in this order. A row that is named twice has branched."""
        copied = [(slot, row) for slot, row in enumerate(rows) if slot != row]
        if copied:
            targets, sources = torch.tensor(copied, device=self._bias_NP.device).T
            for part in (*self._keys, *self._values):
                part[targets, :, : self.used] = part[sources, :, : self.used]
            if self._own_bias_RT is not None:
                self._own_bias_RT[targets] = self._own_bias_RT[sources]
        self._prompts_R = [self._prompts_R[row] for row in rows]
        needed = sorted({*self._prompts_R})
        if len(needed) <= _DROP_BELOW * len(self._in_use):
            self._drop_others(needed)
        self.select(slice(0, len(rows)))

    def _drop_others(self, prompts: Sequence[int]) -> None:
        """Drop all other prompts."""
        chosen = torch.tensor(prompts, device=self._bias_NP.device)
        self._bias_NP = self._bias_NP[chosen]
        # Not in place: cached conversations still use the prefill's lists.
        self._prefix_keys = [keys[chosen] for keys in self._prefix_keys]
        self._prefix_values = [values[chosen] for values in self._prefix_values]
        self._in_use = [self._in_use[prompt] for prompt in prompts]
        self._prompts_R = [prompts.index(prompt) for prompt in self._prompts_R]

    def _mask(self, row: int, start: int, stop: int) -> None:
        if self._own_bias_RT is None:
            room, _, slots, _ = self._keys[0].shape
            self._own_bias_RT = self._keys[0].new_zeros(room, slots)
        self._own_bias_RT[row, start:stop] = float("-inf")
