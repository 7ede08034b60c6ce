"""Log-probabilities in pieces equal those of all logits at once, and so do their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from envkit.engine.head import Head
from envkit.training.learner.logprobs import selective_logprobs

ROWS, WIDTH, VOCABULARY = 11, 7, 50


def output_layer(vocabulary: int, width: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(width, vocabulary, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("held", [1, 3 * VOCABULARY, 10**6])
def test_pieces_equal_the_whole(
    held: int, bias: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envkit.training.learner.logprobs._LOGITS", held)
    torch.manual_seed(held)
    layer, targets = output_layer(VOCABULARY, WIDTH, bias), torch.randint(VOCABULARY, (ROWS,))
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    whole = layer(hidden) / temperature
    expected = whole.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    upstream = torch.randn(ROWS)
    [slope] = torch.autograd.grad(expected, hidden, upstream)
    found = selective_logprobs(hidden, Head(layer), targets, temperature)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, hidden, upstream)[0], slope)
    with torch.no_grad():
        torch.testing.assert_close(selective_logprobs(hidden, Head(layer), targets, temperature), expected)


def test_no_rows_have_no_log_probabilities() -> None:
    hidden = torch.randn(0, WIDTH, requires_grad=True)
    found = selective_logprobs(
        hidden, Head(output_layer(VOCABULARY, WIDTH)), torch.zeros(0, dtype=torch.long)
    )
    assert found.shape == (0,)
    found.sum().backward()
    assert hidden.grad is not None


def test_no_tensor_of_all_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of this size would be exceeded if one tensor held the logits of all rows."""
    rows, vocabulary = 64, 2**16
    monkeypatch.setattr("envkit.training.learner.logprobs._LOGITS", 2**18)
    largest, product = 0, Head.__call__

    def watched(head: Head, hidden: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        made = product(head, hidden)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(Head, "__call__", watched)
    hidden = torch.randn(rows, 8, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,))
    selective_logprobs(hidden, Head(output_layer(vocabulary, 8)), targets).sum().backward()
    assert largest == 2**18


@pytest.mark.parametrize("bias", [False, True])
def test_logits_of_bfloat16_weights_are_not_rounded_to_bfloat16(bias: bool) -> None:
    torch.manual_seed(0)
    layer, hidden = output_layer(VOCABULARY, WIDTH, bias).bfloat16(), torch.randn(ROWS, WIDTH).bfloat16()
    head, exact = Head(layer), hidden.double() @ layer.weight.double().T
    added = layer.bias.double() if bias else 0.0
    torch.testing.assert_close(head(hidden).double(), exact + added, rtol=1e-6, atol=1e-6)
    layer.weight.mul_(2)
    torch.testing.assert_close(head(hidden).double(), 2 * exact + added, rtol=1e-6, atol=1e-6)
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"
