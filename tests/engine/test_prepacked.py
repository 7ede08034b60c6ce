"""Products with weights that are laid out once are the products of the weights as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from envkit.engine.prepacked import PrepackedLinear


def some(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (33,), (2, 5), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_linear(dtype: torch.dtype, shape: tuple[int, ...], bias: bool) -> None:
    weight, added, x = some(96, 40, dtype=dtype), some(96, dtype=dtype), some(*shape, 40, dtype=dtype)
    with torch.no_grad():
        found = PrepackedLinear(weight, added if bias else None, [weight])(x)
        wanted = linear(x, weight, added if bias else None)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    torch.testing.assert_close(found, wanted)


def test_rows_may_lie_apart() -> None:
    weight, x = some(96, 40), some(6, 3, 40)
    with torch.no_grad():
        torch.testing.assert_close(PrepackedLinear(weight, None, [weight])(x[:, 1]), linear(x[:, 1], weight))


def test_a_weight_that_is_changed_in_place_is_laid_out_again() -> None:
    weight, x = torch.nn.Parameter(some(96, 40)), some(3, 40)
    with torch.no_grad():
        product = PrepackedLinear(weight.data, None, [weight])
        product(x)
        weight.mul_(-2)
        torch.testing.assert_close(product(x), linear(x, weight))


@pytest.mark.parametrize("why", ["torch was built without oneDNN", "float64"])
def test_without_a_copy_the_product_is_plain(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "oneDNN" in why:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    dtype = torch.float64 if why == "float64" else torch.float32
    weight, x = some(96, 40, dtype=dtype), some(3, 40, dtype=dtype)
    assert torch.equal(PrepackedLinear(weight, None, [weight])(x), linear(x, weight))
