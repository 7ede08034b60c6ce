"""The linear layer that the learner runs where all of its weights are trained."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn.functional import linear


@final
class FullLinear(nn.Linear):
    """A linear layer that keeps its weights in float32 and computes in the dtype of its input.

    A step of full fine-tuning changes a weight by less than bfloat16 can keep. The product itself has the
    base's dtype, like the engine's.

    Args:
        layer: has the initial weights; it stays as it is.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(layer.weight.detach().float().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().float().clone())  # pyright: ignore

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return linear(input, self.weight.to(input.dtype), bias)
