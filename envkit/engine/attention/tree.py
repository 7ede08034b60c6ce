"""Attention of rows over a prompt that they share and over themselves, with a gradient."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def tree_attention(
    query_KRGCD: Tensor,
    prompt_key_KPD: Tensor,
    prompt_value_KPD: Tensor,
    key_KRCD: Tensor,
    value_KRCD: Tensor,
    scale: float,
) -> Tensor:
    """Attend with the C tokens of R rows to all P tokens of the prompt, and to the row's own up to each.

    Args:
        query_KRGCD: of size D, for K key heads that serve G query heads each.
        prompt_key_KPD, prompt_value_KPD: the prompt's.
        key_KRCD, value_KRCD: the rows' own.
        scale: of the scores.

    Returns:
        (K, R, G, C, D).
    """
    inputs = (query_KRGCD, prompt_key_KPD, prompt_value_KPD, key_KRCD, value_KRCD, scale)
    return cast("Tensor", _Fused.apply(*inputs)) if query_KRGCD.device.type == "cpu" else in_one(*inputs)


def in_one(
    query_KRGCD: Tensor,
    prompt_key_KPD: Tensor,
    prompt_value_KPD: Tensor,
    key_KRCD: Tensor,
    value_KRCD: Tensor,
    scale: float,
) -> Tensor:
    """Like `tree_attention`, on any device: every row and query head gets a copy of the prompt's keys."""
    _, rows, group, count, _ = query_KRGCD.shape
    keys, values = (
        torch.cat([shared[:, None].expand(-1, rows, -1, -1), own], dim=2)[:, :, None].expand(
            -1, -1, group, -1, -1
        )
        for shared, own in ((prompt_key_KPD, key_KRCD), (prompt_value_KPD, value_KRCD))
    )
    longest = prompt_key_KPD.shape[1]
    visible = torch.ones(count, longest + count, dtype=torch.bool, device=query_KRGCD.device).tril(longest)
    return scaled_dot_product_attention(query_KRGCD, keys, values, attn_mask=visible, scale=scale)


class _Fused(torch.autograd.Function):
    """PyTorch's fused attention of a CPU, once over the prompt and once over the rows, joined.

    Its public function keeps the logarithm of the softmax's denominator (``lse`` below) to itself, which
    joins two parts: both outputs are weighted by their part of the joint denominator. The fused backward pass
    computes the weights again from it, so with the joint output and the joint ``lse`` it gives the gradient
    of each part.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        query, prompt_key, prompt_value, key, value, scale = inputs
        shape_RKGCD = query.transpose(0, 1).shape
        shared, own = _shared(query, prompt_key, prompt_value), _own(query, key, value)
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        over_prompt, prompt_lse = attend(*shared, 0.0, False, scale=scale)
        over_own, own_lse = attend(*own, 0.0, True, scale=scale)
        prompt_lse, own_lse = (found.reshape(shape_RKGCD[:-1]) for found in (prompt_lse, own_lse))
        lse = torch.logaddexp(prompt_lse, own_lse)
        out = over_prompt.reshape(shape_RKGCD) * (prompt_lse - lse).exp_()[..., None]
        out += over_own.reshape(shape_RKGCD) * (own_lse - lse).exp_()[..., None]
        out = out.to(query.dtype)
        ctx.save_for_backward(query, prompt_key, prompt_value, key, value, out, lse)
        ctx.scale = scale
        return out.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, prompt_key, prompt_value, key, value, out, lse = ctx.saved_tensors
        grad_out = gradients[0].transpose(0, 1).contiguous()

        def backward_of(part: tuple[Tensor, ...], first: int, causal: bool) -> tuple[Tensor, ...]:
            grad, out_part, lse_part = (each.flatten(first, first + 1) for each in (grad_out, out, lse))
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
            return fused(grad, *part, out_part, lse_part, 0.0, causal, scale=ctx.scale)

        grad_by_prompt, *grads_of_prompt = backward_of(_shared(query, prompt_key, prompt_value), 2, False)
        grad_by_own, *grads_of_rows = backward_of(_own(query, key, value), 1, True)
        grad_query = grad_by_prompt.reshape(out.shape) + grad_by_own.reshape(out.shape)
        # A key's gradient is a sum over the rows, or over the query heads, that it served.
        prompts = (grad.sum(0, dtype=torch.float32).to(grad.dtype) for grad in grads_of_prompt)
        rows = (
            grad.reshape(out.shape).sum(2, dtype=torch.float32).to(grad.dtype).transpose(0, 1)
            for grad in grads_of_rows
        )
        return grad_query.transpose(0, 1), *prompts, *rows, None


def _shared(query: Tensor, key_KPD: Tensor, value_KPD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query (R, K, G * C, D), and the prompt's keys and values as if every row had them (R, K, P, D)."""
    rows = query.shape[1]
    return (
        query.transpose(0, 1).flatten(2, 3),
        key_KPD.expand(rows, -1, -1, -1),
        value_KPD.expand(rows, -1, -1, -1),
    )


def _own(query: Tensor, key_KRCD: Tensor, value_KRCD: Tensor) -> tuple[Tensor, ...]:
    """Query, keys and values as if every query head had a key head of its own (R, K * G, C, D)."""
    group = query.shape[2]
    copies = (
        part.transpose(0, 1)[:, :, None].expand(-1, -1, group, -1, -1) for part in (key_KRCD, value_KRCD)
    )
    return tuple(part.flatten(1, 2) for part in (query.transpose(0, 1), *copies))
