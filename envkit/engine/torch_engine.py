"""The torch engine: transformers' causal models, prompts prefilled once, groups decoded together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor

from envkit.engine.attention import Decode, Own, Prefill, register
from envkit.engine.draw import draw
from envkit.engine.lora import Linears, Update
from envkit.engine.protocol import Completion, Request, Sampling, uniforms
from envkit.engine.stops import StopStrings
from envkit.engine.waves import Prompt, compact, reown, waves
from envkit.errors import ContractError, ModelError

#: Work on pieces this large stays in a CPU's cache, and its buffers are reused, not faulted in anew.
_PREFILL_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class _Held:
    """What was read of a conversation that may go on: all its ids but the last."""

    prefix: Prefill
    prompt: int
    prompt_length: int
    own: Own


@dataclass(frozen=True, slots=True)
class _Start:
    """A wave that is ready to draw its first tokens."""

    prefix: Prefill
    lengths: list[int]
    layout: Decode
    logits_RV: Tensor


@final
class TorchEngine:
    """Samples from a transformers causal language model. Implements `envkit.engine.protocol.Engine`.

    Which requests are decoded together depends only on their number, their prompts and what is held of them,
    never on timing. Equal calls in equal order since `load` give equal bits (same machine, build, threads).

    Args:
        model: the model to sample from, without adapters. Its weights are shared and its modules left alone;
            see `envkit.engine.lora.Linears`.
        stop_ids: ids that end a turn.
        max_rows: rows decoded together; more is faster until memory or cache says otherwise.
        decode: the text of ids, special tokens included; without it there are no stop strings.
    """

    def __init__(
        self,
        model: Any,
        stop_ids: Sequence[int],
        max_rows: int = 128,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._linears = Linears(model)
        rewritten = self._linears.model
        rewritten.set_attn_implementation(register())
        rewritten.eval()
        self._decoder = rewritten.get_decoder()
        self._head = rewritten.get_output_embeddings()
        self._device = self._head.weight.device
        #: Tokens that the model tells apart by where they stand.
        self._longest: int = (
            getattr(model.config.get_text_config(), "max_position_embeddings", 0) or sys.maxsize
        )
        self._stop = torch.tensor(sorted(set(stop_ids)), device=self._device)
        self._max_rows, self._text = max_rows, decode
        #: By adapter and ids.
        self._held: dict[tuple[int, tuple[int, ...]], _Held] = {}
        self._adapters = 0

    def load(self, adapters: Sequence[Mapping[str, Update]]) -> None:
        """Take over these adapters, in place of all before; see `envkit.engine.lora.updates_of`.

        Raises:
            ModelError: one is for another model.
        """
        self.forget()
        self._linears.load(adapters)
        self._adapters = len(adapters)

    def forget(self) -> None:
        """Let go of what is held of conversations; they are read anew if they go on all the same."""
        self._held = {}

    def close(self) -> None:
        """See `envkit.engine.protocol.AdapterEngine.close`; the weights are the learner's as well."""
        self.forget()

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        held: dict[int, _Held] = {}
        new: dict[int, Prompt] = {}
        old: dict[int, Prompt] = {}
        for index, request in enumerate(requests):
            if not 0 <= request.adapter < max(self._adapters, 1):
                raise ContractError(
                    f"a request is for adapter {request.adapter}; the engine was given {self._adapters}, "
                    "numbered from 0"
                )
            if len(request.prompt_ids) >= self._longest:
                raise ModelError(
                    f"a conversation has {len(request.prompt_ids)} tokens; the model reads {self._longest}, "
                    "the answer included; a max_context_length keeps conversations shorter"
                )
            found = self._held.get((request.adapter, request.prompt_ids[: request.known]))
            if found is None:
                new[index] = len(request.prompt_ids), (request.adapter, request.prompt_ids)
            else:
                held[index] = found
                old[index] = found.prompt_length, (id(found.prefix), found.prompt)
        self._held = {}
        done: dict[int, Completion] = {}
        for wave in waves(new, self._max_rows):
            start = self._begin(wave, requests, sampling.max_new_tokens)
            done |= self._decode(start, wave, requests, sampling)
        for wave in waves(old, self._max_rows):
            start = self._go_on(wave, requests, held, sampling.max_new_tokens)
            for index in (index for group in wave for index in group):
                del held[index]  # it is in the wave's own buffers now
            done |= self._decode(start, wave, requests, sampling)
        return [done[index] for index in range(len(requests))]

    def _begin(self, wave: list[list[int]], requests: Sequence[Request], budget: int) -> _Start:
        """Read new prompts."""
        firsts = [requests[group[0]] for group in wave]
        lengths = [len(first.prompt_ids) for first in firsts]
        prefix, logits_NV = self._prefill(firsts)
        rows = max(map(len, wave))
        layout = Decode(prefix, torch.tensor(lengths, device=self._device), rows, budget)
        return _Start(prefix, lengths, layout, logits_NV.repeat_interleave(rows, dim=0))

    def _go_on(
        self,
        wave: list[list[int]],
        requests: Sequence[Request],
        held: Mapping[int, _Held],
        budget: int,
    ) -> _Start:
        """Read what was added to conversations, behind what is held of them."""
        firsts, rows = [held[group[0]] for group in wave], max(map(len, wave))
        prefix = Prefill.of([(first.prefix, first.prompt) for first in firsts])
        lengths = [first.prompt_length for first in firsts]
        slots = [index for group in wave for index in [*group, *[group[0]] * (rows - len(group))]]
        adapters = [requests[group[0]].adapter for group in wave]
        owns = [held[index].own for index in slots]
        read = [held[index].prompt_length + len(own) for index, own in zip(slots, owns, strict=True)]
        added = [requests[index].prompt_ids[start:] for index, start in zip(slots, read, strict=True)]
        fresh = max(map(len, added))
        room = max(map(len, owns)) + fresh + budget
        layout = Decode(prefix, torch.tensor(lengths, device=self._device), rows, room)
        layout.recall(owns)
        logits: list[Tensor] = []
        count = max(_PREFILL_TOKENS // (rows * fresh), 1)
        for start in range(0, len(wave), count):
            layout.piece = slice(start, min(start + count, len(wave)))
            mine = slice(layout.piece.start * rows, layout.piece.stop * rows)
            logits.append(self._read(added[mine], read[mine], fresh, layout, adapters[layout.piece]))
        layout.piece = None
        layout.advance([len(ids) for ids in added])
        return _Start(prefix, lengths, layout, torch.cat(logits))

    def _decode(
        self, start: _Start, wave: list[list[int]], requests: Sequence[Request], sampling: Sampling
    ) -> dict[int, Completion]:
        """Decode one wave; each of its lists holds the request indices of one prompt."""
        budget, device = sampling.max_new_tokens, self._device
        layout, logits_RV = start.layout, start.logits_RV
        # The batch is a rectangle of prompts x rows; short groups are filled with slots nobody owns.
        rows = max(map(len, wave))
        prompt_of = {index: prompt for prompt, group in enumerate(wave) for index in group}
        adapters = [requests[group[0]].adapter for group in wave]
        owners = [index for group in wave for index in [*group, *[-1] * (rows - len(group))]]
        draws_RT = torch.zeros(len(owners), budget, dtype=torch.float64, device=device)
        position_R = torch.zeros(len(owners), dtype=torch.long, device=device)
        for slot, index in enumerate(owners):
            if index >= 0:
                draws_RT[slot] = torch.from_numpy(uniforms(requests[index].rng_key, budget))
                position_R[slot] = len(requests[index].prompt_ids)
        strings = self._stop_strings(sampling)
        room = {index: min(budget, self._longest - len(requests[index].prompt_ids)) for index in prompt_of}
        sampled: dict[int, list[int]] = {index: [] for index in prompt_of}
        logprobs: dict[int, list[float]] = {index: [] for index in prompt_of}
        done: dict[int, Completion] = {}

        for step in range(budget):
            token_R, logprob_R = draw(logits_RV, draws_RT[:, step], sampling)
            stopped, tokens, drawn = map(_listed, (torch.isin(token_R, self._stop), token_R, logprob_R))
            for slot, (token, logprob) in enumerate(zip(tokens, drawn, strict=True)):
                index = owners[slot]
                if index < 0:
                    continue
                sampled[index].append(token)
                logprobs[index].append(logprob)
                is_over = stopped[slot] or strings.end(sampled[index])
                if is_over or len(sampled[index]) == room[index]:
                    why = "stop" if is_over else "length"
                    done[index] = Completion(tuple(sampled[index]), tuple(logprobs[index]), why)
                    owners[slot] = -1
                    if (request := requests[index]).goes_on:
                        prompt = prompt_of[index]
                        self._held[request.adapter, request.prompt_ids + done[index].ids] = _Held(
                            start.prefix, prompt, start.lengths[prompt], layout.own(slot)
                        )
            if len(done) == len(sampled):
                break
            kept = compact(owners, rows)
            if kept is not None:
                prompts_n, slots_r = (torch.tensor(part, device=device) for part in kept)
                layout.keep(prompts_n, slots_r)
                rows = len(slots_r) // len(prompts_n)
                owners = reown(owners, kept[1])
                adapters = [adapters[prompt] for prompt in kept[0]]
                token_R, position_R, draws_RT = token_R[slots_r], position_R[slots_r], draws_RT[slots_r]
            hidden = self._forward(token_R[:, None], position_R[:, None], layout, adapters)
            logits_RV = self._head(hidden[:, 0])
            layout.advance()
            position_R = position_R + 1
        return done

    def _stop_strings(self, sampling: Sampling) -> StopStrings:
        if sampling.stop_strings and self._text is None:
            raise ContractError("this engine was made without `decode`, and so knows no stop strings")
        return StopStrings(sampling.stop_strings, self._text or str)

    def _prefill(self, prompts: Sequence[Request]) -> tuple[Prefill, Tensor]:
        """Keys and values of all prompts, and the logits (N, V) after each one's last token."""
        longest = max(len(request.prompt_ids) for request in prompts)
        prefix = Prefill(len(prompts), longest)
        logits: list[Tensor] = []
        count = max(_PREFILL_TOKENS // longest, 1)
        for start in range(0, len(prompts), count):
            asked = prompts[start : start + count]
            piece = [request.prompt_ids for request in asked]
            prefix.piece = slice(start, start + len(piece))
            adapters = [request.adapter for request in asked]
            logits.append(self._read(piece, [0] * len(piece), max(map(len, piece)), prefix, adapters))
        return prefix, torch.cat(logits)

    def _read(
        self,
        added: Sequence[Sequence[int]],
        read: Sequence[int],
        width: int,
        layout: Prefill | Decode,
        adapters: Sequence[int],
    ) -> Tensor:
        """Logits (B, V) after the last id that each row adds to ``read`` others; padded to ``width``."""
        ids_BS = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in added], device=self._device)
        position_B = torch.tensor(read, device=self._device)
        positions_BS = position_B[:, None] + torch.arange(width, device=self._device)
        hidden = self._forward(ids_BS, positions_BS, layout, adapters)
        last = torch.stack([row[len(ids) - 1] for row, ids in zip(hidden, added, strict=True)])
        return self._head(last)

    def _forward(
        self, ids_BS: Tensor, positions_BS: Tensor, layout: Prefill | Decode, adapters: Sequence[int]
    ) -> Tensor:
        """Hidden states (B, S, width); ``adapters`` has one number for each prompt."""
        mixed = len(set(adapters)) > 1
        self._linears.chosen = torch.tensor(adapters, device=self._device) if mixed else adapters[0]
        return self._decoder(
            input_ids=ids_BS, position_ids=positions_BS, use_cache=False, layout=layout
        ).last_hidden_state


def _listed(values: Tensor) -> list[Any]:
    """``Tensor.tolist``, which torch leaves untyped."""
    return cast("list[Any]", values.tolist())
