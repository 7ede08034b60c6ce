"""The learner's layer equals PEFT's, up to rounding, and keeps less memory for the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from torch import Tensor, nn

from envkit.training.learner.lora_linear import LoraLinear

WIDTHS = (24, 40)


def layer(own: bool, dtype: torch.dtype, *, bias: bool = True, **settings: Any) -> Any:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(*WIDTHS, bias=bias).to(dtype))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"], **settings)
    if own:
        config._register_custom_module({nn.Linear: LoraLinear})
    made = get_peft_model(base, config).base_model.model[0]
    assert type(made) is (LoraLinear if own else lora.Linear)
    with torch.no_grad():
        for parameter in (*made.lora_A.parameters(), *made.lora_B.parameters()):
            torch.manual_seed(parameter.numel())
            parameter.normal_()
    return made


def run(made: Any, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients."""
    torch.manual_seed(1)
    x = torch.randn(2, 3, WIDTHS[0]).to(dtype).requires_grad_()
    out = made(x)
    trained = [x, *made.lora_A.parameters(), *made.lora_B.parameters()]
    return [out.detach(), *torch.autograd.grad(out, trained, torch.randn(out.shape).to(dtype))]


@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients_equal_those_of_peft(bias: bool) -> None:
    ours, theirs = (run(layer(own, torch.float32, bias=bias), torch.float32) for own in (True, False))
    torch.testing.assert_close(ours, theirs)


def test_in_bfloat16_the_adapter_stays_float32_and_results_are_near() -> None:
    made = layer(True, torch.bfloat16)
    found, exact = run(made, torch.bfloat16), run(layer(False, torch.float32), torch.float32)
    assert [part.dtype for part in found] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for some, other in zip(found, exact, strict=True):
        assert float((some.float() - other).norm() / other.norm()) < 0.01


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}], ids=lambda s: next(iter(s))
)
def test_other_kinds_of_adapters_are_left_to_peft(settings: dict[str, Any]) -> None:
    ours, theirs = (run(layer(own, torch.float32, **settings), torch.float32) for own in (True, False))
    assert all(torch.equal(some, other) for some, other in zip(ours, theirs, strict=True))


def test_whether_a_bias_is_all_of_an_adapter_is_looked_up_once_for_each_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = (layer(own, torch.float32, lora_bias=True) for own in (True, False))
    look, looks, x = torch.Tensor.any, list[int](), torch.randn(3, WIDTHS[0])

    def counting(weight: Tensor) -> Tensor:
        looks.append(weight.numel())
        return look(weight)

    monkeypatch.setattr(torch.Tensor, "any", counting)
    for number in (0.0, 0.5, 0.0):
        for made in (ours, theirs):
            with torch.no_grad():
                made.lora_B["default"].weight.fill_(number)
        looks.clear()
        for _ in range(3):
            torch.testing.assert_close(ours(x), theirs(x))
        assert len(looks) == 1


def test_no_float32_copy_of_the_input_is_kept() -> None:
    made, kept = layer(True, torch.bfloat16), set[tuple[torch.Size, torch.dtype]]()

    def keep(saved: Tensor) -> Tensor:
        kept.add((saved.shape, saved.dtype))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        made(torch.randn(5, WIDTHS[0]).bfloat16().requires_grad_())
    assert (torch.Size([5, WIDTHS[0]]), torch.bfloat16) in kept
    assert not [dtype for _, dtype in kept if dtype == torch.float32]
