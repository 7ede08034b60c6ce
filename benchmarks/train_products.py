"""All matrix products of a decode step, with plain weights and with the engine's packed copies."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence

import tiny
import torch
from side_by_side import Ways
from torch import nn
from train_shared import dtype, timed_model

from envkit.engine.prepacked import PrepackedLinear

TIMES = 8


@contextlib.contextmanager
def product_ways() -> Generator[Ways]:
    """Multiply 1 row and 32 rows 8 times with every linear layer; layers of one width get the same input."""
    model = tiny.plain(timed_model(), dtype())
    weights = [layer.weight.data for layer in model.modules() if isinstance(layer, nn.Linear)]
    generator = torch.Generator().manual_seed(0)

    def multiply_all(
        products: Sequence[Callable[[torch.Tensor], torch.Tensor]], rows: int
    ) -> Callable[[], None]:
        inputs = {
            weight.shape[1]: torch.randn(rows, weight.shape[1], generator=generator).to(weight.dtype)
            for weight in weights
        }

        def measure() -> None:
            with torch.no_grad():
                for _ in range(TIMES):
                    for product, weight in zip(products, weights, strict=True):
                        product(inputs[weight.shape[1]])

        return measure

    plain = [functools.partial(nn.functional.linear, weight=weight) for weight in weights]
    copied = [PrepackedLinear(weight, None, [weight]) for weight in weights]
    yield {
        f"{rows} rows, {way}": multiply_all(products, rows)
        for rows in (1, 32)
        for way, products in (("as they are", plain), ("copied", copied))
    }
