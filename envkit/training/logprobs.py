"""Log-probabilities of trained tokens, without ever holding the logits of all of them.

With a vocabulary of 151,936, the logits of 2,000 tokens take 1.2 GB, and their softmax and its gradient as
much again. Here they are computed in pieces, and again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from envkit.engine.attention import PackedTree, rows_of
from envkit.training.packing import PackedBatch

#: Logits that are held at the same time.
_LOGITS = 2**24


def logprobs(model: Any, batch: PackedBatch, temperature: float) -> Tensor:
    """Log-probability of every trained token under the model at a temperature > 0, shape (N,).

    Logits are computed only where they predict a trained token, and once for rows that share it: the
    vocabulary projection is a fifth of a small model's work.
    """
    hidden_SE = model.get_decoder()(
        input_ids=batch.ids_1S,
        position_ids=batch.positions_1S,
        use_cache=False,
        layout=PackedTree(batch.prompt, batch.paths, batch.ids_1S.device),
    ).last_hidden_state[0]
    head = model.get_output_embeddings()
    hidden_KE = rows_of(hidden_SE, batch.sources_K)
    new_K = chosen_logprobs(hidden_KE, head.weight, head.bias, batch.targets_K, temperature)
    return rows_of(new_K[:, None], batch.index_N)[:, 0]


def chosen_logprobs(
    hidden_KE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, targets_K: Tensor, temperature: float = 1.0
) -> Tensor:
    """Log-probability of one token in each row, shape (K,), float32.

    Args:
        hidden_KE: the last hidden states; the only argument that gets a gradient.
        weight_VE, bias_V: of the vocabulary projection.
        targets_K: the tokens.
        temperature: > 0; divides the logits.
    """
    return cast("Tensor", _Chosen.apply(hidden_KE, weight_VE, bias_V, targets_K, temperature))


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden_KE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        targets_K: Tensor,
        temperature: float,
    ) -> Tensor:
        found: list[Tensor] = []
        norms: list[Tensor] = []
        for hidden, targets in _pieces(hidden_KE, targets_K, len(weight_VE)):
            logits = _logits(hidden, weight_VE, bias_V, temperature)
            norms.append(torch.logsumexp(logits, dim=-1, keepdim=True))
            found.append((logits.gather(1, targets[:, None]) - norms[-1])[:, 0])
        norm_K1 = torch.cat(norms) if norms else hidden_KE.new_zeros(0, 1, dtype=torch.float32)
        ctx.save_for_backward(hidden_KE, weight_VE, bias_V, targets_K, norm_K1)
        ctx.temperature = temperature
        return torch.cat(found) if found else norm_K1[:, 0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        [gradient_K] = gradients
        hidden_KE, weight_VE, bias_V, targets_K, norm_K1 = ctx.saved_tensors
        result_KE = torch.empty_like(hidden_KE)
        done = 0
        for hidden, targets in _pieces(hidden_KE, targets_K, len(weight_VE)):
            rows = slice(done, done + len(hidden))
            # d logp(target) / d logits = onehot(target) - softmax(logits)
            slopes = _logits(hidden, weight_VE, bias_V, ctx.temperature).sub_(norm_K1[rows]).exp_().neg_()
            slopes.scatter_add_(1, targets[:, None], torch.ones_like(norm_K1[rows]))
            slopes *= gradient_K[rows, None] / ctx.temperature
            result_KE[rows] = slopes.to(weight_VE.dtype) @ weight_VE
            done = rows.stop
        return result_KE, None, None, None, None


def _pieces(hidden_KE: Tensor, targets_K: Tensor, vocabulary: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, _LOGITS // vocabulary)
    for start in range(0, len(hidden_KE), rows):
        yield hidden_KE[start : start + rows], targets_K[start : start + rows]


def _logits(hidden: Tensor, weight_VE: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight_VE, bias_V).float()
    return logits / temperature if temperature != 1 else logits
