"""The torch engine: any transformers causal model, prompts prefilled once, groups decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from envkit.engine.attention import Decode, Prefill, register
from envkit.engine.protocol import Completion, Request, Sampling, uniforms
from envkit.errors import ModelError

#: Compaction copies the suffix keys; it pays once this share of the rows has finished.
_COMPACT_BELOW = 0.75
#: Work on pieces this large stays in a CPU's cache, and its buffers are reused, not faulted in anew.
_PREFILL_TOKENS = 1024
_DRAW_ROWS = 16


@final
class TorchEngine:
    """Samples from a transformers causal language model. Implements `envkit.engine.protocol.Engine`.

    Which requests are decoded together depends only on their number and prompt lengths, never on
    timing, so equal calls give equal bits (same machine, build and threads).

    Args:
        model: the model to sample from; switched to eval mode and to the layout attention. The
            engine owns it: `load` overwrites its linear weights.
        stop_ids: ids that end a turn.
        max_rows: rows decoded together; more is faster until memory or cache says otherwise.
    """

    def __init__(self, model: Any, stop_ids: Sequence[int], max_rows: int = 128) -> None:
        model.set_attn_implementation(register())
        self._model = model.eval().requires_grad_(False)
        self._decoder = model.get_decoder()
        self._head = model.get_output_embeddings()
        self._device = self._head.weight.device
        self._stop = torch.tensor(sorted(set(stop_ids)), device=self._device)
        self._max_rows = max_rows

    @torch.no_grad()
    def load(self, peft_model: Any | None, base: Any) -> None:
        """Take over weights: the base's, plus every LoRA update of ``peft_model`` added in.

        The sum is made afresh from the base each time; adding and taking away in place would drift.

        Args:
            peft_model: a PEFT model over ``base``, or ``None`` for the base alone.
            base: the model without adapter, of the same architecture.
        """
        from peft.tuners.lora import LoraLayer

        if peft_model is None:
            own = dict(self._model.named_parameters())
            for name, weight in base.named_parameters():
                # A base that carries an adapter has its own weights one level down.
                if (target := own.get(name.replace(".base_layer.", "."))) is not None:
                    target.copy_(weight)
            return
        mine: dict[str, Any] = dict(self._model.named_modules())
        for name, module in peft_model.base_model.model.named_modules():
            if isinstance(module, LoraLayer):
                layer: Any = module
                update = layer.get_delta_weight(layer.active_adapters[0])
                torch.add(layer.base_layer.weight, update, out=mine[name].weight.data)

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        done: dict[int, Completion] = {}
        for wave in _waves(requests, self._max_rows):
            done |= self._decode(wave, requests, sampling)
        return [done[index] for index in range(len(requests))]

    def _decode(
        self, wave: list[list[int]], requests: Sequence[Request], sampling: Sampling
    ) -> dict[int, Completion]:
        """Decode one wave; each of its lists holds the request indices of one prompt."""
        budget, device = sampling.max_new_tokens, self._device
        prompts = [requests[group[0]].prompt_ids for group in wave]
        lengths_N = torch.tensor([len(ids) for ids in prompts], device=device)
        prefix, logits_NV = self._prefill(prompts)

        # The batch is a rectangle of prompts x rows; short groups are filled with slots nobody owns.
        rows = max(map(len, wave))
        owners = [index for group in wave for index in [*group, *[-1] * (rows - len(group))]]
        layout = Decode(prefix, lengths_N, rows, budget)
        draws_RT = torch.zeros(len(owners), budget, dtype=torch.float64, device=device)
        for slot, index in enumerate(owners):
            if index >= 0:
                draws_RT[slot] = torch.from_numpy(uniforms(requests[index].rng_key, budget))
        logits_RV = logits_NV.repeat_interleave(rows, dim=0)
        position_R = lengths_N.repeat_interleave(rows)
        sampled: dict[int, list[int]] = {index: [] for group in wave for index in group}
        logprobs: dict[int, list[float]] = {index: [] for index in sampled}
        done: dict[int, Completion] = {}

        for step in range(budget):
            token_R, logprob_R = _draw(logits_RV, draws_RT[:, step], sampling.temperature)
            stopped, tokens, drawn = map(_listed, (torch.isin(token_R, self._stop), token_R, logprob_R))
            for slot, (token, logprob) in enumerate(zip(tokens, drawn, strict=True)):
                index = owners[slot]
                if index < 0:
                    continue
                sampled[index].append(token)
                logprobs[index].append(logprob)
                if stopped[slot] or step == budget - 1:
                    why = "stop" if stopped[slot] else "length"
                    done[index] = Completion(tuple(sampled[index]), tuple(logprobs[index]), why)
                    owners[slot] = -1
            if len(done) == len(sampled):
                break
            kept = _compact(owners, rows)
            if kept is not None:
                prompts_n, slots_r = (torch.tensor(part, device=device) for part in kept)
                layout.keep(prompts_n, slots_r)
                rows = len(slots_r) // len(prompts_n)
                owners = _reown(owners, kept[1])
                token_R, position_R, draws_RT = token_R[slots_r], position_R[slots_r], draws_RT[slots_r]
            hidden = self._forward(token_R[:, None], position_R[:, None], layout)
            logits_RV = self._head(hidden[:, 0])
            layout.step += 1
            position_R = position_R + 1
        return done

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Prefill, Tensor]:
        """Keys and values of all prompts, and the logits (N, V) after each one's last token."""
        longest = max(map(len, prompts))
        prefix = Prefill(len(prompts), longest)
        logits: list[Tensor] = []
        count = max(_PREFILL_TOKENS // longest, 1)
        for start in range(0, len(prompts), count):
            piece = [torch.tensor(ids, device=self._device) for ids in prompts[start : start + count]]
            ids_NP = pad_sequence(piece, batch_first=True)
            positions_NP = torch.arange(ids_NP.shape[1], device=self._device)[None].expand_as(ids_NP)
            prefix.piece = slice(start, start + len(piece))
            hidden = self._forward(ids_NP, positions_NP, prefix)
            last = torch.stack([row[len(ids) - 1] for row, ids in zip(hidden, piece, strict=True)])
            logits.append(self._head(last))
        return prefix, torch.cat(logits)

    def _forward(self, ids_BS: Tensor, positions_BS: Tensor, layout: Prefill | Decode) -> Tensor:
        """Hidden states (B, S, width)."""
        return self._decoder(
            input_ids=ids_BS, position_ids=positions_BS, use_cache=False, layout=layout
        ).last_hidden_state


def _pieces(values_R: Tensor) -> tuple[Tensor, ...]:
    return torch.split(values_R, _DRAW_ROWS)


def _listed(values: Tensor) -> list[Any]:
    """``Tensor.tolist``, which torch leaves untyped."""
    return cast("list[Any]", values.tolist())


def _draw(logits_RV: Tensor, uniform_R: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One id per row and its log-probability; at temperature 0 the most likely id."""
    parts = [
        _draw_rows(logits.float(), uniform, temperature)
        for logits, uniform in zip(_pieces(logits_RV), _pieces(uniform_R), strict=True)
    ]
    return torch.cat([token for token, _ in parts]), torch.cat([logprob for _, logprob in parts])


def _draw_rows(logits_RV: Tensor, uniform_R: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw by inverse CDF.

    Searching the cumulative sum is several times cheaper on a CPU than ``torch.multinomial``, which
    draws an exponential for every entry of the vocabulary.
    """
    if temperature > 0:
        probs_RV = torch.softmax(logits_RV / temperature, dim=-1)
        cdf_RV = probs_RV.cumsum(dim=-1)
        if not bool(torch.isfinite(cdf_RV[:, -1]).all()):
            raise ModelError("the model's logits are not finite: its weights are broken")
        # Scaled by the sum, which rounding leaves a little off 1. The first entry that reaches the
        # target has a probability above 0, even where the target is rounded up to the sum.
        target_R1 = (uniform_R[:, None] * cdf_RV[:, -1:]).to(cdf_RV.dtype)
        token_R1 = torch.searchsorted(cdf_RV, target_R1)
    else:
        probs_RV = torch.softmax(logits_RV, dim=-1)
        token_R1 = logits_RV.argmax(dim=-1, keepdim=True)
    return token_R1[:, 0], probs_RV.gather(1, token_R1)[:, 0].log()


def _waves(requests: Sequence[Request], max_rows: int) -> list[list[list[int]]]:
    """Requests grouped by prompt, groups packed into waves of at most ``max_rows`` rectangle slots.

    Longest prompts first, so prompts of similar length share a wave and its padding stays small.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.prompt_ids, []).append(index)
    pieces = [
        group[start : start + max_rows]
        for group in groups.values()
        for start in range(0, len(group), max_rows)
    ]
    pieces.sort(key=lambda piece: (-len(requests[piece[0]].prompt_ids), -len(piece), piece[0]))
    waves: list[list[list[int]]] = []
    for piece in pieces:
        if waves:
            widest = max(len(piece), *map(len, waves[-1]))
            if widest * (len(waves[-1]) + 1) <= max_rows:
                waves[-1].append(piece)
                continue
        waves.append([piece])
    return waves


def _compact(owners: list[int], rows: int) -> tuple[list[int], list[int]] | None:
    """Which prompts and slots to go on with, as a smaller rectangle; ``None`` while it does not pay."""
    alive = {
        prompt: live
        for prompt in range(len(owners) // rows)
        if (live := [s for s in range(prompt * rows, (prompt + 1) * rows) if owners[s] >= 0])
    }
    widest = max(map(len, alive.values()))
    if widest * len(alive) > _COMPACT_BELOW * len(owners):
        return None
    # A group with fewer rows than the widest is filled with copies of its first.
    slots = [slot for live in alive.values() for slot in [*live, *[live[0]] * (widest - len(live))]]
    return list(alive), slots


def _reown(owners: list[int], slots: list[int]) -> list[int]:
    """Owners after compaction; a slot's copies, which only fill the rectangle, belong to nobody."""
    seen: set[int] = set()
    result: list[int] = []
    for slot in slots:
        result.append(-1 if slot in seen else owners[slot])
        seen.add(slot)
    return result
