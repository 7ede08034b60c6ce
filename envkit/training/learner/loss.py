"""Policy-gradient losses with TRL's names and numbers: pure functions of tensors.

A step's loss is a sum over its trained tokens, weighted by `token_weights`. So a step can be computed in
chunks of any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envkit.engine.attention.packed_tree import rows_of
from envkit.training.config import TrainConfig
from envkit.training.learner.packing import PackedBatch


@dataclass(frozen=True, slots=True)
class StepSize:
    """The size of a whole step, groups without a gradient included.

    Args:
        tokens: sampled tokens.
        sequences: episodes.
    """

    tokens: int
    sequences: int


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Loss and metrics of one batch.

    Args:
        total: share of the step's loss; has a gradient.
        drift: sum over tokens of |learner's - engine's log-probability|.
        clipped: tokens whose ratio is clipped, given the sign of their advantage.
        tokens: trained tokens in the batch.
        kl: sum over tokens of the estimated KL divergence from the reference, in nats; 0 without one.
    """

    total: Tensor
    drift: float
    clipped: int
    tokens: int
    kl: float


def policy_loss(
    new_N: Tensor, batch: PackedBatch, size: StepSize, config: TrainConfig, reference_N: Tensor | None = None
) -> LossTerms:
    """Compute the batch's share of the step's loss.

    PPO's clipped surrogate per token (arXiv:1707.06347), or CISPO's clipped weight (arXiv:2506.13585); the
    probability ratio is a token's own or, at ``importance_sampling_level="sequence"``, the geometric mean
    of its episode's (GSPO, arXiv:2507.18071).

    Args:
        new_N: `logprobs` of the model in training.
        batch: the sampled tokens.
        size: of the whole step.
        config: chooses the loss.
        reference_N: `logprobs` of the model without its adapter; needed if ``beta`` is not 0.
    """
    correct = config.importance_sampling_mode != "none"
    # With one gradient step per batch, the model is its own old policy; only the engine may differ.
    log_ratio_N = new_N - (new_N.detach() if correct else batch.old_logprobs_N)
    if config.importance_sampling_level == "sequence":
        log_ratio_N = _row_sums(log_ratio_N, batch) / _row_lengths(batch)
    ratio_N, advantage_N = log_ratio_N.exp(), batch.advantages_N
    low, high = config.clip_range()
    if config.loss_type == "cispo":
        loss_N = -ratio_N.clamp(max=high).detach() * advantage_N * new_N
    else:
        loss_N = -torch.minimum(ratio_N * advantage_N, ratio_N.clamp(low, high) * advantage_N)
    if correct:
        loss_N = loss_N * _correction(new_N.detach(), batch, config)
    kl = 0.0
    if reference_N is not None:
        kl_N = divergence(new_N, reference_N)
        # Multiplied by the ratio, so that the gradient is the divergence's own (arXiv:2512.02556).
        loss_N = loss_N + config.beta * ratio_N * kl_N
        kl = float(kl_N.detach().sum())
    outside_N = ((advantage_N > 0) & (ratio_N > high)) | ((advantage_N < 0) & (ratio_N < low))
    return LossTerms(
        total=(loss_N * token_weights(batch, size, config)).sum(),
        drift=float((new_N.detach() - batch.old_logprobs_N).abs().sum()),
        clipped=int(outside_N.sum()),
        tokens=len(new_N),
        kl=kl,
    )


def divergence(new: Tensor, reference: Tensor) -> Tensor:
    """Estimate the KL divergence of a policy from its reference at sampled tokens, in nats.

    Never negative (Schulman 2020, estimator k3).
    """
    gap = reference - new
    return gap.exp() - gap - 1


def token_weights(batch: PackedBatch, size: StepSize, config: TrainConfig) -> Tensor:
    """Weight of each trained token, shape (N,).

    ``grpo``: episodes have equal weight (arXiv:2402.03300). ``dr_grpo``: tokens have equal weight, divided by
    the largest number of tokens that the step could sample (arXiv:2503.20783). The others: tokens have equal
    weight, divided by the number of sampled tokens (DAPO, arXiv:2503.14476).
    """
    if config.loss_type == "grpo":
        return 1 / (size.sequences * _row_lengths(batch))
    if config.loss_type == "dr_grpo":
        budget = size.sequences * config.turns * config.max_completion_length
        return torch.full_like(batch.advantages_N, 1 / budget)
    return torch.full_like(batch.advantages_N, 1 / size.tokens)


def _correction(new_N: Tensor, batch: PackedBatch, config: TrainConfig) -> Tensor:
    """Importance weights that correct for an engine whose probabilities differ from the learner's.

    The ratio of the two per token or per episode, clipped at ``importance_sampling_clip_max``
    (``*_truncate``), or 0 above it (``*_mask``).
    """
    level, _, measure = config.importance_sampling_mode.partition("_")
    log_ratio_N = new_N - batch.old_logprobs_N
    ratio_N = (_row_sums(log_ratio_N, batch) if level == "sequence" else log_ratio_N).exp()
    limit = config.importance_sampling_clip_max
    return ratio_N.clamp(max=limit) if measure == "truncate" else ratio_N.where(ratio_N <= limit, 0.0)


def _row_sums(values_N: Tensor, batch: PackedBatch) -> Tensor:
    """Sum over each row, repeated at each of its tokens."""
    sums_R = values_N.new_zeros(batch.rows).index_add(0, batch.rows_N, values_N)
    return rows_of(sums_R[:, None], batch.rows_N)[:, 0]


def _row_lengths(batch: PackedBatch) -> Tensor:
    """Number of trained tokens of each row, repeated at each of them."""
    return _row_sums(torch.ones_like(batch.old_logprobs_N), batch)
