"""The vocabulary projection of a model, with logits in float32."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from envkit.engine.mixed_precision import exact_products
from envkit.engine.prepacked import PrepackedLinear


@final
class Head:
    """Turns hidden states into float32 logits, whatever the dtype of the model.

    A logit of 20 in bfloat16 is off by up to 0.06, and engine and learner round different numbers. That was
    most of the difference between their log-probabilities. A product of two bfloat16 numbers is exact in
    float32, so that here only sums are rounded.

    Args:
        module: the model's output embeddings; they are not trained. On a CPU, a prepacked float32 copy is
            held too, because no product of bfloat16 matrices there has a float32 result.
    """

    def __init__(self, module: Any) -> None:
        self._weight: Tensor = module.weight
        self._bias: Tensor | None = module.bias
        self._product = PrepackedLinear(self._weight, self._bias, [self._weight], torch.float32)

    @property
    def vocabulary(self) -> int:
        """V, the number of tokens."""
        return len(self._weight)

    def __call__(self, hidden_RE: Tensor) -> Tensor:
        """Return the logits (R, V)."""
        weight = self._weight
        if weight.device.type == "cuda" and weight.dtype != torch.float32:
            logits_RV = torch.mm(hidden_RE, weight.T, out_dtype=torch.float32)
            return logits_RV if self._bias is None else logits_RV.add_(self._bias)
        with exact_products(weight.dtype):
            return self._product(hidden_RE.float())

    def backward(self, grad_RV: Tensor) -> Tensor:
        """Turn the gradient of logits (R, V) into that of the hidden states (R, E)."""
        return grad_RV.to(self._weight.dtype) @ self._weight
