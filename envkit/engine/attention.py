"""Attention layouts: one function registered with transformers, three ways to lay out a batch.

A layout travels through any transformers model as the keyword argument ``layout`` and does the
attention of every layer. So no model's attention is rewritten, and no cache class is needed. What sampling
does with linear layers is in `envkit.engine.lora`.

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

from envkit.engine.rectangle import Rectangle
from envkit.errors import ModelError

NAME = "envkit_layout"

#: A prompt that no row needs takes time; leaving it out copies the others, which pays once so many are left.
_NARROW_BELOW = 0.75

#: Departures from plain causal attention that some models ask for.
_NOT_DONE = ("sliding_window", "softcap", "s_aux")
_NOT_PLAIN = (
    "this model has layers without attention, or values of another size than its keys, which envkit does not "
    "do; use another"
)


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
    layout: Layout | None = kwargs.get("layout")
    if layout is None:
        raise ModelError(
            "this model does not pass keyword arguments to its attention, which envkit needs; use another"
        )
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
        self.bring(slice(0, prompts))

    @classmethod
    def of(cls, prompts: Sequence[tuple[Prefill, int, int]]) -> Prefill:
        """Prompts of earlier ones, as one: each with its number there and its real length."""
        first, longest = prompts[0][0], max(length for _, _, length in prompts)
        theirs = [(prefill, number) for prefill, number, _ in prompts]
        if longest == first._longest and theirs == [(first, number) for number in range(len(first.keys[0]))]:
            return first
        made = cls(len(prompts), longest)

        def joined(rows: Iterable[Tensor]) -> Tensor:
            return torch.stack([pad(row, (0, 0, 0, longest - row.shape[1])) for row in rows])

        for layer in range(len(first.keys)):
            made.keys.append(joined(prefill.keys[layer][number, :, :end] for prefill, number, end in prompts))
            made.values.append(
                joined(prefill.values[layer][number, :, :end] for prefill, number, end in prompts)
            )
        return made

    def bring(self, prompts: slice) -> None:
        """Say which prompts the next forward pass brings; all, unless said."""
        self._piece = prompts
        #: The wave's prompt of each row that is brought.
        self.prompts: Sequence[int] = range(prompts.start, prompts.stop)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if layer == len(self.keys) and key.shape == value.shape:
            shape = (self._prompts, key.shape[1], self._longest, key.shape[3])
            self.keys.append(key.new_zeros(shape))
            self.values.append(value.new_zeros(shape))
        if layer >= len(self.keys):
            raise ModelError(_NOT_PLAIN)
        self.keys[layer][self._piece, :, : key.shape[2]] = key
        self.values[layer][self._piece, :, : key.shape[2]] = value
        # Right padding needs no mask: a real position never looks to its right.
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)


def context_length(config: Any) -> int:
    """Tokens that a transformers model reads at most; ``sys.maxsize`` if its configuration names no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", 0) or sys.maxsize


def require_plain(model: Any) -> None:
    """Refuse a model that does more than the layouts and its head do; leave it with the layouts' attention.

    Engine and learner would agree with each other on what it says, and it would say something else.

    Raises:
        ModelError: a layer is not plain attention, positions are not a row's own, or logits are more than the
            head makes of hidden states.
    """
    kinds = {str(getattr(module, "rope_type", "default")) for module in model.modules()}
    if moving := [kind for kind in sorted(kinds) if "dynamic" in kind or "longrope" in kind]:
        raise ModelError(
            f"this model's positions ({moving[0]}) depend on what else is read beside a row; use another"
        )
    ids, decoder = torch.arange(3, device=model.device)[None], model.get_decoder()
    layout, asked = Prefill(1, ids.shape[1]), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        whole = model(**asked, use_cache=False).logits
        plain = model.get_output_embeddings()(decoder(**asked, use_cache=False).last_hidden_state)
        model.set_attn_implementation(register())
        decoder(input_ids=ids, position_ids=ids, use_cache=False, layout=layout)
    if len(layout.keys) != model.config.get_text_config().num_hidden_layers:
        raise ModelError(_NOT_PLAIN)
    if not torch.allclose(plain.float(), whole.float(), equal_nan=True):
        raise ModelError("this model scales or caps its logits, which envkit does not do; use another")


@dataclass(frozen=True, slots=True)
class RowCache:
    """What one row has added behind its prompt: keys and values (K, L, D) of L tokens, by layer."""

    keys: list[Tensor]
    values: list[Tensor]

    def __len__(self) -> int:
        return self.keys[0].shape[1]


@final
class Decode:
    """New tokens for rows of N prompts: shared prompt keys, own keys, one softmax.

    A row's own keys lie in slots which all rows fill together, so that a step writes one slice. What a row
    leaves empty where others have more is hidden from it.

    Args:
        prefix: the wave's prefill.
        lengths_N: real prompt lengths.
        prompts_R: number of each row's prompt, in order.
        room: most rows that there will be.
        slots: own tokens to reserve.
    """

    def __init__(
        self, prefix: Prefill, lengths_N: Tensor, prompts_R: Sequence[int], room: int, slots: int
    ) -> None:
        self._prefix_keys, self._prefix_values = prefix.keys, prefix.values
        count, heads, longest, size = prefix.keys[0].shape
        self._keys = [keys.new_empty(room, heads, slots, size) for keys in prefix.keys]
        self._values = [values.new_empty(room, heads, slots, size) for values in prefix.values]
        padding_NP = torch.arange(longest, device=lengths_N.device)[None] >= lengths_N[:, None]
        self._bias_NP = torch.zeros(padding_NP.shape, dtype=prefix.keys[0].dtype, device=lengths_N.device)
        self._bias_NP.masked_fill_(padding_NP, float("-inf"))
        #: Hides empty slots, where there are any.
        self._own_bias_RT: Tensor | None = None
        self.used = 0
        #: The wave's prompts that are left, and where each row's is among them.
        self._left, self._prompts_R = [*range(count)], [*prompts_R]
        self.bring(slice(0, len(self._prompts_R)))

    def bring(self, rows: slice) -> None:
        """Say which rows the next forward pass brings: all, unless said; fewer while they are in order."""
        self._piece, prompts = rows, self._prompts_R[rows]
        whole = len(prompts) == len(self._prompts_R)
        first, last = (0, len(self._left) - 1) if whole else (prompts[0], prompts[-1])
        #: The wave's prompt of each row that is brought.
        self.prompts = [self._left[each] for each in prompts]
        #: The prompts left that this is about, and the rows' places among them.
        self._here = slice(first, last + 1)
        count = last + 1 - first
        self._rectangle = Rectangle([each - first for each in prompts], count, self._bias_NP.device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        total, heads, fresh, size = query.shape
        kv, now = key.shape[1], self.used + key.shape[2]
        share, longest = heads // kv, self._bias_NP.shape[1]
        rectangle, here = self._rectangle, self._here
        keys, values = self._keys[layer][self._piece], self._values[layer][self._piece]
        keys[:, :, self.used : now], values[:, :, self.used : now] = key, value

        def fold(by_row: Tensor) -> Tensor:
            """(R, K, share * S, X) -> (N, K, W * share * S, X): a prompt's keys are read once for all."""
            if rectangle.is_whole:
                folded = by_row.view(-1, rectangle.widest, *by_row.shape[1:])
            else:
                folded = rectangle.fold(by_row)
            return folded.transpose(1, 2).flatten(2, 3)

        def unfold(folded: Tensor) -> Tensor:
            folded = folded.reshape(len(folded), kv, rectangle.widest, share * fresh, -1).transpose(1, 2)
            return folded.flatten(0, 1) if rectangle.is_whole else rectangle.unfold(folded)

        query = (query * scale).reshape(total, kv, share * fresh, size)
        shared = fold(query) @ self._prefix_keys[layer][here].transpose(-1, -2)
        shared = shared + self._bias_NP[here, None, None]
        own = query @ keys[:, :, :now].transpose(-1, -2)
        if self._own_bias_RT is not None:
            own = own + self._own_bias_RT[self._piece, None, None, :now]
        if fresh > 1:
            later = torch.ones(fresh, fresh, dtype=torch.bool, device=own.device).triu(1)
            own.view(total, kv, share, fresh, now)[..., self.used :].masked_fill_(later, float("-inf"))
        weights = torch.cat([shared, fold(own)], dim=-1).softmax(dim=-1)
        out = unfold(weights[..., :longest] @ self._prefix_values[layer][here])
        out = out + unfold(weights[..., longest:]) @ values[:, :, :now]
        return out.reshape(total, heads, fresh, size).transpose(1, 2)

    def advance(self, lengths: Sequence[int] | None = None) -> None:
        """Count what was brought: one token for each row, or ``lengths`` of them, padded on the right."""
        if lengths is None:
            self.used += 1
            return
        for row, length in enumerate(lengths):
            if length < max(lengths):
                self._hide(row, self.used + length, self.used + max(lengths))
        self.used += max(lengths)

    def recall(self, rows: Sequence[RowCache]) -> None:
        """Begin with what each row has added before. Called first, if at all."""
        longest = max(map(len, rows))
        for row, own in enumerate(rows):
            for layer in range(len(self._keys)):
                for whole, part in ((self._keys, own.keys), (self._values, own.values)):
                    whole[layer][row, :, : len(own)] = part[layer]
                    # What a bias hides must be finite all the same.
                    whole[layer][row, :, len(own) : longest] = 0
            if len(own) < longest:
                self._hide(row, len(own), longest)
        self.used = longest

    def own(self, row: int) -> RowCache:
        """A copy of what a row has added so far."""
        if self._own_bias_RT is None:
            chosen: Any = slice(0, self.used)
        else:
            chosen = (self._own_bias_RT[row, : self.used] == 0).nonzero()[:, 0]
        keys, values = (
            [part[row, :, chosen].clone() for part in parts] for parts in (self._keys, self._values)
        )
        return RowCache(keys, values)

    def arrange(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; one that is named several times has branched."""
        moved = [(place, row) for place, row in enumerate(rows) if place != row]
        if moved:
            places, sources = torch.tensor(moved, device=self._bias_NP.device).T
            for part in (*self._keys, *self._values):
                part[places, :, : self.used] = part[sources, :, : self.used]
            if self._own_bias_RT is not None:
                self._own_bias_RT[places] = self._own_bias_RT[sources]
        self._prompts_R = [self._prompts_R[row] for row in rows]
        needed = sorted({*self._prompts_R})
        if len(needed) <= _NARROW_BELOW * len(self._left):
            self._narrow(needed)
        self.bring(slice(0, len(rows)))

    def _narrow(self, prompts: Sequence[int]) -> None:
        """Go on with these prompts only."""
        chosen = torch.tensor(prompts, device=self._bias_NP.device)
        self._bias_NP = self._bias_NP[chosen]
        # Not in place: the prefill's own lists serve whoever goes on from here later.
        self._prefix_keys = [keys[chosen] for keys in self._prefix_keys]
        self._prefix_values = [values[chosen] for values in self._prefix_values]
        self._left = [self._left[prompt] for prompt in prompts]
        self._prompts_R = [prompts.index(prompt) for prompt in self._prompts_R]

    def _hide(self, row: int, start: int, stop: int) -> None:
        if self._own_bias_RT is None:
            room, _, slots, _ = self._keys[0].shape
            self._own_bias_RT = self._keys[0].new_zeros(room, slots)
        self._own_bias_RT[row, start:stop] = float("-inf")


def rows_of(table_SE: Tensor, index: Tensor) -> Tensor:
    """Rows of a table, some perhaps more than once; as indexing, but with equal bits from equal gradients.

    The gradient of plain indexing on a CPU is added up by several threads, in any order. This one's threads
    have rows of their own.
    """
    return torch.nn.functional.embedding(index, table_SE)


@final
class PackedTree:
    """A training batch in one sequence of S tokens: a prompt of P, then a tree; a path sees it and itself.

    Paths attend as a padded batch over prompt and own keys, so that the work is R * C * (P + C) for R paths
    of up to C tokens, and no (S, S) mask is ever made. All but attention is done once for each token.

    Args:
        prompt: P.
        paths: places in S of each path's tokens, from the first behind the prompt on; each place is in at
            least one of them.
        device: where the tokens are.
    """

    def __init__(
        self, prompt: int, paths: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> None:
        self._prompt, self._rows = prompt, len(paths)
        longest = max(map(len, paths), default=0)
        # Padding repeats the first token: it lies to the right of every real one, who never look there.
        padded = [[*path, *[path[0]] * (longest - len(path))] for path in paths]
        self._index_RC = torch.tensor(padded, dtype=torch.long, device=device).view(self._rows, longest)
        # Of a token that several paths share, any one has the output.
        slots = {
            place: row * longest + offset
            for row, path in enumerate(paths)
            for offset, place in enumerate(path)
        }
        in_order = [slots[place] for place in sorted(slots)]
        self._slots = torch.tensor(in_order, dtype=torch.long, device=device)
        self._mask = torch.ones(longest, prompt + longest, dtype=torch.bool, device=device).tril(prompt)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        rows, prompt = self._rows, self._prompt
        # Heads are repeated by hand: with enable_gqa the CPU falls back to a slow kernel.
        share = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(share, dim=1), value.repeat_interleave(share, dim=1)

        def own(part: Tensor) -> Tensor:
            """(1, H, S, D) -> (R, H, C, D)."""
            _, heads, total, size = part.shape
            flat = part[0].transpose(0, 1).reshape(total, heads * size)
            return rows_of(flat, self._index_RC).view(rows, -1, heads, size).transpose(1, 2)

        def over(part: Tensor) -> Tensor:
            """(1, H, S, D) -> (R, H, P + C, D)."""
            return torch.cat([part[:, :, :prompt].expand(rows, -1, -1, -1), own(part)], dim=2)

        first = scaled_dot_product_attention(
            query[:, :, :prompt], key[:, :, :prompt], value[:, :, :prompt], is_causal=True, scale=scale
        )
        first = first.transpose(1, 2)
        if not rows:
            return first
        later = scaled_dot_product_attention(
            own(query), over(key), over(value), attn_mask=self._mask, scale=scale
        )
        later = later.transpose(1, 2).flatten(0, 1)[self._slots]  # (S - P, H, D), in order
        return torch.cat([first[0], later])[None]
