"""Log-probabilities of trained tokens: every prompt is read once, and all logits are never held together.

With a vocabulary of 151,936, the logits of 2,000 tokens take 1.2 GB, and their softmax and its gradient as
much again. Here they are computed in pieces. A token's log-probability depends on one hidden state only, so
its gradient there is computed with it: no logits are kept for the backward pass, or computed again.
"""

from __future__ import annotations

from typing import Any, cast, final

import torch
from torch import Tensor

from envkit.engine.attention.packed_tree import PromptLayout, TreeLayout, rows_of
from envkit.engine.head import Head
from envkit.training.learner.packing import PackedBatch

#: Logits that are held at the same time: 64 MB. Every piece reads the whole vocabulary projection, so that
#: half of it takes a fifth longer.
_LOGITS = 2**24


@final
class PrefilledPrompt:
    """The keys and values of a prompt, for all batches that continue it.

    The prompt's own backward pass is made once, for all of them together: first call ``backward`` of each
    batch's loss, then `backward` here.

    Args:
        model: the PEFT model.
        ids_1P: the prompt.
        detached: the batches' gradients stop here, until `backward`. False for a single batch, whose backward
            pass then includes the prompt's.
    """

    def __init__(self, model: Any, ids_1P: Tensor, *, detached: bool = True) -> None:
        layout = PromptLayout()
        hidden_PE = hidden_states(model, ids_1P, layout)
        self._outputs = [*layout.keys, *layout.values, hidden_PE[-1:]]
        self._leaves = self._outputs
        if detached:
            self._leaves = [part.detach().requires_grad_(part.requires_grad) for part in self._outputs]
        layers = len(layout.keys)
        #: Of every layer, and the last hidden state (1, E).
        self.keys, self.values, self.last = self._leaves[:layers], self._leaves[layers:-1], self._leaves[-1]

    def backward(self) -> None:
        """Continue the backward passes of the batches into the prompt."""
        pairs = [
            (part, leaf.grad)
            for part, leaf in zip(self._outputs, self._leaves, strict=True)
            if leaf.grad is not None
        ]
        if pairs:
            torch.autograd.backward([part for part, _ in pairs], [grad for _, grad in pairs])


def hidden_states(model: Any, ids_1P: Tensor, layout: PromptLayout) -> Tensor:
    """The last hidden states (P, E) of a text; ``layout`` gets its keys and values.

    Args:
        model: the PEFT model.
        ids_1P: the text.
        layout: an empty one.
    """
    positions_1P = torch.arange(ids_1P.shape[1], device=ids_1P.device)[None]
    decoder = model.get_decoder()
    return decoder(
        input_ids=ids_1P, position_ids=positions_1P, use_cache=False, layout=layout
    ).last_hidden_state[0]


def logprobs(
    model: Any, head: Head, batch: PackedBatch, temperature: float, prompt: PrefilledPrompt | None = None
) -> Tensor:
    """Log-probability of every trained token under the model at a temperature > 0, shape (N,), float32.

    Logits are computed only where they predict a trained token, and once for rows that share it: the
    vocabulary projection is a fifth of a small model's work, and more of one with a large vocabulary.

    Args:
        model: the PEFT model.
        head: its vocabulary projection.
        batch: the tokens.
        temperature: divides the logits.
        prompt: the batch's, if other batches share it.
    """
    if prompt is None:
        prompt = PrefilledPrompt(model, batch.prompt_1P, detached=False)
    hidden_SE = prompt.last  # and what follows it
    if batch.ids_1S.shape[1]:
        following = model.get_decoder()(
            input_ids=batch.ids_1S,
            position_ids=batch.positions_1S,
            use_cache=False,
            layout=TreeLayout(prompt.keys, prompt.values, batch.paths),
        ).last_hidden_state[0]
        hidden_SE = torch.cat([prompt.last, following])
    hidden_KE = rows_of(hidden_SE, batch.sources_K)
    new_K = selective_logprobs(hidden_KE, head, batch.targets_K, temperature)
    return rows_of(new_K[:, None], batch.index_N)[:, 0]


def selective_logprobs(hidden_KE: Tensor, head: Head, targets_K: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of one token in each row, shape (K,), float32.

    Args:
        hidden_KE: the last hidden states; the only argument that gets a gradient.
        head: the vocabulary projection.
        targets_K: the tokens.
        temperature: > 0; divides the logits.
    """
    return cast("Tensor", _SelectiveLogprobs.apply(hidden_KE, head, targets_K, temperature))


class _SelectiveLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden_KE: Tensor, head: Head, targets_K: Tensor, temperature: float
    ) -> Tensor:
        rows = max(1, _LOGITS // head.vocabulary)
        found_K = hidden_KE.new_empty(len(hidden_KE), dtype=torch.float32)
        grad_KE = torch.empty_like(hidden_KE) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden_KE), rows):
            piece = slice(start, start + rows)
            target_R1 = targets_K[piece, None]
            logits_RV = head(hidden_KE[piece])
            if temperature != 1:
                logits_RV /= temperature
            logits_RV -= logits_RV.amax(dim=-1, keepdim=True)
            chosen_R1 = logits_RV.gather(1, target_R1)
            total_R1 = logits_RV.exp_().sum(dim=-1, keepdim=True)
            found_K[piece] = (chosen_R1 - total_R1.log())[:, 0]
            if grad_KE is not None:
                # d logp(target) / d logits = onehot(target) - softmax(logits)
                grad_RV = logits_RV.div_(-total_R1)
                grad_RV.scatter_add_(1, target_R1, torch.ones_like(total_R1))
                grad_KE[piece] = head.backward(grad_RV) / temperature
        if grad_KE is not None:
            ctx.save_for_backward(grad_KE)
        return found_K

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        [grad_KE] = ctx.saved_tensors
        return (gradients[0][:, None] * grad_KE).to(grad_KE.dtype), None, None, None
