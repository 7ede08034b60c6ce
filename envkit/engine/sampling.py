"""Sampling token ids from logits."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from envkit.engine.protocol import Sampling
from envkit.errors import ModelError

#: Rows per chunk: it fits into a CPU's cache, and buffers are reused instead of page-faulted.
_ROWS = 16


def draw(logits_RV: Tensor, uniform_RO: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw O ids from each row; returns (R, O) ids and log-probabilities. Temperature 0 is greedy.

    Args:
        logits_RV: of the next token, float32. They are overwritten.
        uniform_RO: random numbers in [0, 1), float64.
        sampling: temperature and truncation.

    Raises:
        ModelError: the logits are not finite.
    """
    pieces = zip(torch.split(logits_RV, _ROWS), torch.split(uniform_RO, _ROWS), strict=True)
    drawn = [_draw_rows(logits, uniform, sampling) for logits, uniform in pieces]
    return torch.cat([token for token, _ in drawn]), torch.cat([logprob for _, logprob in drawn])


def _draw_rows(logits_RV: Tensor, uniform_RO: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    if sampling.temperature == 0:
        probs_RV = torch.softmax(logits_RV, dim=-1)
        token_R1 = logits_RV.argmax(dim=-1, keepdim=True)
        chosen_R1 = probs_RV.gather(1, token_R1)
        _require_finite(chosen_R1)
        return token_R1.expand_as(uniform_RO), chosen_R1.log().expand_as(uniform_RO)
    if sampling.temperature != 1:
        logits_RV /= sampling.temperature
    probs_RV = _truncated(torch.softmax(logits_RV, dim=-1), sampling.top_p)
    token_RO = _search(probs_RV, uniform_RO)
    return token_RO, probs_RV.gather(1, token_RO).log()


def _search(probs_RV: Tensor, uniform_RO: Tensor) -> Tensor:
    """Draw ids by inverse CDF: first a block of the vocabulary, then an id in it.

    ``torch.multinomial`` draws an exponential for every entry of the vocabulary, and a cumulative sum adds
    them up one after the other. Sums of blocks are one fast pass, and the rest is a few hundred numbers.
    """
    # A GPU sums in chunks; with float32 rounding, the cumulative sum could decrease.
    exact = None if probs_RV.device.type == "cpu" else torch.float64
    rows, vocabulary = probs_RV.shape
    blocks_RBW = probs_RV.view(rows, -1, block_size(vocabulary))
    cdf_RB = blocks_RBW.sum(dim=-1, dtype=exact).cumsum(dim=-1)
    _require_finite(cdf_RB[:, -1])
    # Scaled by the sum, which rounding leaves slightly off 1. The first entry that reaches a target above 0
    # has a probability above 0, even if the target is rounded up to the sum.
    target_RO = (uniform_RO * cdf_RB[:, -1:]).to(cdf_RB.dtype)
    target_RO = target_RO.clamp(min=torch.finfo(cdf_RB.dtype).tiny)
    block_RO = torch.searchsorted(cdf_RB, target_RO)
    before_RO = torch.nn.functional.pad(cdf_RB, (1, 0)).gather(1, block_RO)
    row_R1 = torch.arange(rows, device=probs_RV.device)[:, None]
    cdf_ROW = blocks_RBW[row_R1, block_RO].cumsum(dim=-1, dtype=exact)
    # Both sums of a block are rounded, in different ways.
    inner_RO = torch.minimum(target_RO - before_RO, cdf_ROW[..., -1])
    return block_RO * cdf_ROW.shape[-1] + torch.searchsorted(cdf_ROW, inner_RO[..., None])[..., 0]


@functools.cache
def block_size(vocabulary: int) -> int:
    """The divisor of a vocabulary's size that is nearest to its square root.

    >>> block_size(151_936), block_size(49_152), block_size(7)
    (128, 192, 1)
    """
    root = math.isqrt(vocabulary)
    divisors = [d for d in range(1, root + 1) if vocabulary % d == 0]
    return min((d for small in divisors for d in (small, vocabulary // small)), key=lambda d: abs(d - root))


def _require_finite(numbers: Tensor) -> None:
    if not bool(torch.isfinite(numbers).all()):
        raise ModelError("the model's logits are not finite: its weights are broken")


def _truncated(probs_RV: Tensor, top_p: float) -> Tensor:
    """Apply ``top_p``, and normalize."""
    if top_p == 1:
        return probs_RV
    sorted_RV, order_RV = probs_RV.sort(dim=-1, descending=True, stable=True)
    # An id is kept if the more likely ones together are below top_p; the most likely is always kept.
    kept_RV = sorted_RV.cumsum(dim=-1) - sorted_RV < top_p
    probs_RV = probs_RV.where(torch.zeros_like(kept_RV).scatter(1, order_RV, kept_RV), 0.0)
    return probs_RV / probs_RV.sum(dim=-1, keepdim=True)
