"""Attention over a shared prompt equals PyTorch's over each row's own copy of it, and so do the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from envkit.engine.attention.tree import in_one, tree_attention

K, R, G, C, P, D = 2, 3, 4, 5, 7, 8
SHAPES = ((K, R, G, C, D), (K, P, D), (K, P, D), (K, R, C, D), (K, R, C, D))


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in SHAPES]


def test_the_joined_parts_equal_one_attention() -> None:
    ours, theirs = inputs(), inputs()
    found, expected = tree_attention(*ours, 0.5), in_one(*theirs, 0.5)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, ours, upstream), torch.autograd.grad(expected, theirs, upstream)
    )


def test_bfloat16_is_as_near_to_the_truth_as_pytorch() -> None:
    exact = [part.detach().double().requires_grad_() for part in inputs(torch.bfloat16)]
    upstream = torch.randn(SHAPES[0]).bfloat16()
    wanted = torch.autograd.grad(in_one(*exact, 0.5), exact, upstream.double())

    def distance(way: str) -> float:
        given = inputs(torch.bfloat16)
        out = tree_attention(*given, 0.5) if way == "ours" else in_one(*given, 0.5)
        found = torch.autograd.grad(out, given, upstream)
        return sum(
            float((some.double() - other).norm() / other.norm())
            for some, other in zip(found, wanted, strict=True)
        )

    assert distance("ours") < 1.5 * distance("PyTorch's")
