"""Products of bfloat16 matrices with float32 results, on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any, cast

import torch


@contextlib.contextmanager
def exact_products(dtype: torch.dtype) -> Generator[None]:
    """Let a CPU multiply float32 matrices that hold bfloat16 numbers with its instructions for these.

    Products of two such numbers are exact in float32, and so only sums are rounded. Other numbers would be
    rounded to bfloat16 first.

    Args:
        dtype: of the numbers; nothing changes unless it is bfloat16.
    """
    if dtype != torch.bfloat16:
        yield
        return
    settings = cast("Any", torch.backends.mkldnn).matmul
    before: str = settings.fp32_precision
    try:
        settings.fp32_precision = "bf16"
        yield
    finally:
        settings.fp32_precision = before
