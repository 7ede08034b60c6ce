"""Attention of rows over a prompt that they share and over themselves, with a gradient; made for a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from envkit.engine.mixed_precision import exact_products

#: Scores that are held at the same time.
_SCORES = 2**24


def tree_attention(
    query_KRGCD: Tensor,
    prompt_key_KPD: Tensor,
    prompt_value_KPD: Tensor,
    key_KRCD: Tensor,
    value_KRCD: Tensor,
    scale: float,
) -> Tensor:
    """Attend with the C tokens of R rows to all P tokens of the prompt, and to the row's own up to each.

    PyTorch's attention on a CPU needs a copy of the prompt's keys for every row and query head, and reads
    each. Here they are read once. No weights are kept: the backward pass computes them again.

    Args:
        query_KRGCD: of size D, for K key heads that serve G query heads each.
        prompt_key_KPD, prompt_value_KPD: the prompt's.
        key_KRCD, value_KRCD: the rows' own.
        scale: of the scores.

    Returns:
        (K, R, G, C, D).
    """
    inputs = (query_KRGCD, prompt_key_KPD, prompt_value_KPD, key_KRCD, value_KRCD)
    return cast("Tensor", _TreeAttention.apply(*(part.contiguous() for part in inputs), scale))


class _TreeAttention(torch.autograd.Function):
    """Works on one key head and some rows at a time. Shapes: Q is G * C, the queries of a row."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        query, prompt_key, prompt_value, key, value, scale = inputs
        out = torch.empty_like(query)
        norms = query.new_empty(query.shape[:-1], dtype=torch.float32)
        for at in _pieces(query, prompt_key):
            head, query_RQD = at[0], query[at].flatten(1, 2)
            prompt_RQP, own_RQC = _scores(query_RQD, prompt_key[head], key[at], scale)
            highest_RQ1 = torch.maximum(prompt_RQP.amax(-1, keepdim=True), own_RQC.amax(-1, keepdim=True))
            prompt_RQP.sub_(highest_RQ1).exp_()
            own_RQC.sub_(highest_RQ1).exp_()
            total_RQ1 = prompt_RQP.sum(-1, keepdim=True) + own_RQC.sum(-1, keepdim=True)
            prompt_RQP, own_RQC = (part.div_(total_RQ1).to(query.dtype) for part in (prompt_RQP, own_RQC))
            out[at] = (prompt_RQP @ prompt_value[head] + own_RQC @ value[at]).view_as(query[at])
            norms[at] = (highest_RQ1 + total_RQ1.log()).view_as(norms[at])
        ctx.save_for_backward(query, prompt_key, prompt_value, key, value, out, norms)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, prompt_key, prompt_value, key, value, out, norms = ctx.saved_tensors
        [of_out], dtype = gradients, query.dtype
        of_query, of_key, of_value = map(torch.empty_like, (query, key, value))
        of_prompt_key, of_prompt_value = (
            torch.zeros_like(part, dtype=torch.float32) for part in (prompt_key, prompt_value)
        )
        for at in _pieces(query, prompt_key):
            head, query_RQD = at[0], query[at].flatten(1, 2)
            of_out_RQD, norm_RQ1 = of_out[at].flatten(1, 2), norms[at].flatten(1, 2)[..., None]
            mean_RQ1 = (of_out_RQD.float() * out[at].flatten(1, 2)).sum(-1, keepdim=True)
            scores = _scores(query_RQD, prompt_key[head], key[at], ctx.scale)
            weights = [part.sub_(norm_RQ1).exp_() for part in scores]
            prompt_RQP, own_RQC = (part.to(dtype) for part in weights)
            of_prompt_value[head] += prompt_RQP.flatten(0, 1).T @ of_out_RQD.flatten(0, 1)
            of_value[at] = own_RQC.transpose(1, 2) @ of_out_RQD
            # d loss / d score = weight * (d loss / d weight - its mean under the weights)
            slopes = _products(of_out_RQD, prompt_value[head], value[at])
            prompt_RQP, own_RQC = (
                slope.sub_(mean_RQ1).mul_(weight).mul_(ctx.scale).to(dtype)
                for slope, weight in zip(slopes, weights, strict=True)
            )
            of_query[at] = (prompt_RQP @ prompt_key[head] + own_RQC @ key[at]).view_as(query[at])
            of_prompt_key[head] += prompt_RQP.flatten(0, 1).T @ query_RQD.flatten(0, 1)
            of_key[at] = own_RQC.transpose(1, 2) @ query_RQD
        return of_query, of_prompt_key.to(dtype), of_prompt_value.to(dtype), of_key, of_value, None


def _pieces(query: Tensor, prompt_key: Tensor) -> Iterator[tuple[int, slice]]:
    """Indices of a key head and of some rows, whose scores are not more than `_SCORES`."""
    heads, rows, group, longest, _ = query.shape
    count = max(1, _SCORES // (group * longest * (prompt_key.shape[1] + longest)))
    for head in range(heads):
        for start in range(0, rows, count):
            yield head, slice(start, start + count)


def _scores(query_RQD: Tensor, prompt_key_PD: Tensor, key_RCD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Scores over the prompt (R, Q, P) and over the row's own tokens (R, Q, C), in float32."""
    prompt_RQP, own_RQC = _products(query_RQD, prompt_key_PD, key_RCD)
    longest = key_RCD.shape[1]
    later = torch.ones(longest, longest, dtype=torch.bool, device=own_RQC.device).triu(1)
    own_RQC.view(len(own_RQC), -1, longest, longest).masked_fill_(later, float("-inf"))
    return prompt_RQP.mul_(scale), own_RQC.mul_(scale)


def _products(some_RQD: Tensor, prompt_PD: Tensor, own_RCD: Tensor) -> tuple[Tensor, Tensor]:
    """Products with the rows of the prompt's matrix (R, Q, P) and of the row's own (R, Q, C), in float32."""
    with exact_products(some_RQD.dtype):
        exact = some_RQD.float()
        on_prompt = exact.flatten(0, 1) @ prompt_PD.float().T
        return on_prompt.view(*exact.shape[:2], -1), exact @ own_RCD.float().transpose(1, 2)
