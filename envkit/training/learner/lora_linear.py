"""The linear layer with a LoRA adapter that the learner runs, in the base's dtype like the engine's."""

from __future__ import annotations

from typing import Any, cast, final

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn.functional import linear


@final
class LoraLinear(lora.Linear):
    """PEFT's layer with the products of the adapter in the dtype of the base.

    PEFT computes them in float32, and keeps a float32 copy of every layer's input for the backward pass.
    With a bfloat16 base, both together take a quarter of the activations' memory and of a step's time, for
    precision that a bfloat16 output cannot keep. The adapter's weights and their gradients stay float32.

    A bias without an effect of the matrices, a steering vector, is added in the base's dtype, too.

    Register it with `peft.LoraConfig._register_custom_module`; the layers' names and files are PEFT's.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out)."""
        names: list[str] = self.active_adapters
        layer: Any = self
        if not self.disable_adapters and not self.merged and len(names) == 1 and _is_shift(layer, *names):
            [name] = names
            shift = layer.lora_B[name].bias * layer.scaling[name]
            return cast("Tensor", layer.get_base_layer()(x) + shift.to(x.dtype))
        if (
            self.disable_adapters
            or self.merged
            or len(names) != 1
            or args
            or kwargs
            or not _is_plain(layer, *names)
        ):
            return super().forward(x, *args, **kwargs)
        [name], base = names, layer.get_base_layer()
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        return cast("Tensor", _Sum.apply(x, base.weight, base.bias, down, up, layer.scaling[name]))


def _is_plain(layer: Any, name: str) -> bool:
    """True if an adapter is a product of two matrices and nothing else."""
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_B[name].bias is not None:
        return False
    return not layer.training or isinstance(layer.lora_dropout[name], nn.Identity)


def _is_shift(layer: Any, name: str) -> bool:
    """True if an adapter only adds a vector to the output."""
    if name not in layer.lora_B or layer.lora_B[name].bias is None:
        return False
    return _is_zero(layer.lora_B[name].weight)


def _is_zero(weight: Any) -> bool:
    """True if all numbers of a weight are 0.

    The answer is kept with the weight until it changes: a GPU would have to be waited for in every layer.
    """
    version, is_zero = getattr(weight, "known_zero", (None, False))
    if version != weight._version:
        is_zero = not bool(weight.any())
        weight.known_zero = (weight._version, is_zero)
    return is_zero


class _Sum(torch.autograd.Function):
    """``x @ weight.T + bias + scale * x @ down.T @ up.T``. The base's weight and bias get no gradient."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        x_SI = x.reshape(-1, x.shape[-1])
        down_RI, up_OR = down.to(x.dtype), (up * scale).to(x.dtype)
        inner_SR = x_SI @ down_RI.T
        out_SO = linear(x_SI, weight, bias).addmm_(inner_SR, up_OR.T)
        ctx.save_for_backward(x_SI, weight, down_RI, up_OR, inner_SR)
        ctx.scale, ctx.shape = scale, x.shape
        return out_SO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_SI, weight, down_RI, up_OR, inner_SR = ctx.saved_tensors
        grad_SO = gradients[0].reshape(-1, gradients[0].shape[-1])
        grad_inner_SR = grad_SO @ up_OR
        grad_up = (grad_SO.T @ inner_SR).float() * ctx.scale
        grad_down = (grad_inner_SR.T @ x_SI).float()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_SO @ weight).addmm_(grad_inner_SR, down_RI).view(ctx.shape)
        return grad_x, None, None, grad_down, grad_up, None
