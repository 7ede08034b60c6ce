"""Log-probabilities in pieces equal those of all logits at once, and so do their gradients."""

from __future__ import annotations

import pytest
import torch

from envkit.training.logprobs import chosen_logprobs

ROWS, WIDTH, VOCABULARY = 11, 7, 50


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("held", [1, 3 * VOCABULARY, 10**6])
def test_pieces_equal_the_whole(
    held: int, bias: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envkit.training.logprobs._LOGITS", held)
    torch.manual_seed(held)
    weight, targets = torch.randn(VOCABULARY, WIDTH), torch.randint(VOCABULARY, (ROWS,))
    bias_V = torch.randn(VOCABULARY) if bias else None
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    whole = torch.nn.functional.linear(hidden, weight, bias_V) / temperature
    expected = whole.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    upstream = torch.randn(ROWS)
    [slope] = torch.autograd.grad(expected, hidden, upstream)
    found = chosen_logprobs(hidden, weight, bias_V, targets, temperature)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, hidden, upstream)[0], slope)


def test_no_rows_have_no_log_probabilities() -> None:
    hidden = torch.randn(0, WIDTH, requires_grad=True)
    found = chosen_logprobs(hidden, torch.randn(VOCABULARY, WIDTH), None, torch.zeros(0, dtype=torch.long))
    assert found.shape == (0,)
    found.sum().backward()
    assert hidden.grad is not None


def test_no_tensor_of_all_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of this size would be exceeded if one tensor held the logits of all rows."""
    rows, vocabulary = 64, 2**16
    monkeypatch.setattr("envkit.training.logprobs._LOGITS", 2**18)
    largest = 0
    linear = torch.nn.functional.linear

    def watched(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        made = linear(*arguments)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    hidden = torch.randn(rows, 8, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,))
    chosen_logprobs(hidden, torch.randn(vocabulary, 8), None, targets).sum().backward()
    assert largest == 2**18
