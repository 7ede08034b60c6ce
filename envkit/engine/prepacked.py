"""Linear layers with prepacked weights: a copy in the memory layout of the CPU's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.nn.functional import linear

#: Number of rows that the layout is optimized for; any number works.
_ROWS: Final = 256


@final
class PrepackedLinear:
    """`torch.nn.functional.linear` with a fixed weight and bias.

    Without prepacking, oneDNN reorders the weight for every product. With few rows this dominates: a decode
    step's products take 1.5 times as long in bfloat16 and twice as long in float32 (``ONLY=products make
    bench SECTION=train``). Two operations of torch's compiler for frozen weights do the work. If torch or
    the machine lacks them, and on a GPU, this is plain ``linear``.

    Args:
        weight: (out, in).
        bias: (out,), or ``None``.
        parts: the parameters that are views of ``weight``. Changing one in place renews the copy. If there
            are none, only the copy is kept.
        dtype: of the copy, and of inputs and results; the weight's if ``None``.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        parts: Sequence[Tensor],
        dtype: torch.dtype | None = None,
    ) -> None:
        self._weight: Tensor | None = weight
        self._parts, self._dtype = parts, dtype or weight.dtype
        self._bias = None if bias is None else bias.to(self._dtype)
        self._is_packed = False
        self._copy: Any = None
        self._version = -1

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        version = sum(part._version for part in self._parts)
        if version != self._version and self._weight is not None:
            weight = self._weight.detach().to(self._dtype)
            self._is_packed = _can_pack(weight)
            if self._is_packed:
                weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
            self._copy, self._version = weight, version
            if not self._parts:
                self._weight = None
        if not self._is_packed:
            return linear(x, self._copy, self._bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._copy, self._bias, "none", [], "")


def _can_pack(weight: Tensor) -> bool:
    ops, dtype = torch.ops.mkldnn, weight.dtype
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not (hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(ops._is_mkldnn_bf16_supported()))
