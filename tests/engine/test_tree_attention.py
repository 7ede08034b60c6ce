"""Attention over a shared prompt equals PyTorch's over each row's own copy of it, and so do the gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from envkit.engine.tree_attention import tree_attention

K, R, G, C, P, D = 2, 3, 4, 5, 7, 8
SHAPES = ((K, R, G, C, D), (K, P, D), (K, P, D), (K, R, C, D), (K, R, C, D))


def by_pytorch(query: Tensor, key_P: Tensor, value_P: Tensor, key: Tensor, value: Tensor) -> Tensor:
    keys, values = (
        torch.cat([shared[:, None].expand(-1, R, -1, -1), own], dim=2)[:, :, None].expand(-1, -1, G, -1, -1)
        for shared, own in ((key_P, key), (value_P, value))
    )
    mask = torch.ones(C, P + C, dtype=torch.bool).tril(P)
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=0.5)


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in SHAPES]


@pytest.mark.parametrize("held", [1, 2 * G * C * (P + C), 10**9])
def test_pieces_equal_pytorch(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envkit.engine.tree_attention._SCORES", held)
    ours, theirs = inputs(), inputs()
    found, expected = tree_attention(*ours, 0.5), by_pytorch(*theirs)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, ours, upstream), torch.autograd.grad(expected, theirs, upstream)
    )


def test_bfloat16_is_as_near_to_the_truth_as_pytorch() -> None:
    exact = [part.detach().double().requires_grad_() for part in inputs(torch.bfloat16)]
    upstream = torch.randn(SHAPES[0]).bfloat16()
    wanted = torch.autograd.grad(by_pytorch(*exact), exact, upstream.double())

    def distance(way: str) -> float:
        given = inputs(torch.bfloat16)
        out = tree_attention(*given, 0.5) if way == "ours" else by_pytorch(*given)
        found = torch.autograd.grad(out, given, upstream)
        return sum(
            float((some.double() - other).norm() / other.norm())
            for some, other in zip(found, wanted, strict=True)
        )

    assert distance("ours") < 1.5 * distance("PyTorch's")
