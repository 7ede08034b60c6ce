"""The clipped policy-gradient loss: pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envkit.engine.attention import Packed
from envkit.train.packing import Batch


@dataclass(frozen=True, slots=True)
class LossTerms:
    """What one batch gave.

    Args:
        total: sum over trained tokens, to be divided by the step's token count; has a gradient.
        drift: sum over tokens of |new - sampled log-probability|, engine against learner.
        clipped: tokens whose ratio was outside the clip range on the side that matters.
        tokens: trained tokens in the batch.
    """

    total: Tensor
    drift: float
    clipped: int
    tokens: int


def logprobs(model: Any, batch: Batch, temperature: float) -> Tensor:
    """Log-probability of every trained token under the model at a temperature > 0, shape (N,).

    Logits are computed at the trained positions only: the vocabulary projection is a fifth of a
    small model's work.
    """
    hidden = model.get_decoder()(
        input_ids=batch.ids_1S,
        position_ids=batch.positions_1S,
        use_cache=False,
        layout=Packed(batch.prompt, batch.lengths),
    ).last_hidden_state[0, batch.sources_N]
    logits = model.get_output_embeddings()(hidden).float()
    if temperature != 1:
        logits = logits / temperature
    return torch.log_softmax(logits, dim=-1).gather(1, batch.targets_N[:, None])[:, 0]


def clipped_loss(new_N: Tensor, batch: Batch, epsilon: float) -> LossTerms:
    """PPO's clipped surrogate per token, summed (arXiv:1707.06347).

    The sum is divided by the number of sampled tokens of the whole step: TRL's ``loss_type="dapo"``
    (arXiv:2503.14476).
    """
    advantage = batch.advantages_N
    ratio = torch.exp(new_N - batch.old_logprobs_N)
    clamped = ratio.clamp(1 - epsilon, 1 + epsilon)
    total = -torch.minimum(ratio * advantage, clamped * advantage).sum()
    outside = torch.where(advantage > 0, ratio > 1 + epsilon, ratio < 1 - epsilon)
    drift = float((new_N.detach() - batch.old_logprobs_N).abs().sum())
    return LossTerms(total, drift, int(outside.sum()), len(new_N))
