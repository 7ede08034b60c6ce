"""Products with prepacked weights equal those of the plain weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from envkit.engine.prepacked import PrepackedLinear


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (33,), (2, 5), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_equal_those_of_linear(dtype: torch.dtype, shape: tuple[int, ...], bias: bool) -> None:
    weight, added, x = (
        random_tensor(96, 40, dtype=dtype),
        random_tensor(96, dtype=dtype),
        random_tensor(*shape, 40, dtype=dtype),
    )
    with torch.no_grad():
        found = PrepackedLinear(weight, added if bias else None, [weight])(x)
        wanted = linear(x, weight, added if bias else None)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    torch.testing.assert_close(found, wanted)


def test_inputs_need_not_be_contiguous() -> None:
    weight, x = random_tensor(96, 40), random_tensor(6, 3, 40)
    with torch.no_grad():
        torch.testing.assert_close(PrepackedLinear(weight, None, [weight])(x[:, 1]), linear(x[:, 1], weight))


def test_a_weight_that_is_changed_in_place_is_packed_again() -> None:
    weight, x = torch.nn.Parameter(random_tensor(96, 40)), random_tensor(3, 40)
    with torch.no_grad():
        product = PrepackedLinear(weight.data, None, [weight])
        product(x)
        weight.mul_(-2)
        torch.testing.assert_close(product(x), linear(x, weight))


@pytest.mark.parametrize("why", ["torch was built without oneDNN", "float64"])
def test_the_plain_product_is_used_if_packing_is_unsupported(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "oneDNN" in why:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    dtype = torch.float64 if why == "float64" else torch.float32
    weight, x = random_tensor(96, 40, dtype=dtype), random_tensor(3, 40, dtype=dtype)
    assert torch.equal(PrepackedLinear(weight, None, [weight])(x), linear(x, weight))
