"""Matrix products with weights that hardly ever change: on a CPU with a copy, laid out for its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.nn.functional import linear

#: Rows that the layout is chosen for; it serves any number of them.
_ROWS: Final = 256


@final
class PrepackedLinear:
    """`torch.nn.functional.linear` with a weight and a bias of its own.

    oneDNN would lay the weight out anew at every product, which shows where rows are few: a decode step's
    products take 1.5 times as long in bfloat16 and twice as long in float32 (``ONLY=products make bench
    SECTION=train``). The copy is for two operations that torch's compiler has for frozen weights; where torch
    or the machine lacks them, and on a GPU, products are plain.

    Args:
        weight: (out, in).
        bias: (out,), or none.
        parts: the parameters that lie in ``weight``; when they are changed in place, the copy is made again.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, parts: Sequence[Tensor]) -> None:
        self._weight, self._bias, self._parts = weight, bias, parts
        self._copied = _can_copy(weight)
        self._copy: Any = None
        self._version = -1

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not self._copied:
            return linear(x, self._weight, self._bias)
        version = sum(part._version for part in self._parts)
        if version != self._version:
            self._copy = torch.ops.mkldnn._reorder_linear_weight(self._weight, _ROWS)
            self._version = version
        return torch.ops.mkldnn._linear_pointwise(x, self._copy, self._bias, "none", [], "")


def _can_copy(weight: Tensor) -> bool:
    ops = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not (hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(ops._is_mkldnn_bf16_supported())
    )
