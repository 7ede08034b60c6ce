"""The PyTorch engine: prompts are prefilled once per group, and equal beginnings are decoded once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, final

import torch
from torch import Tensor

from envkit.engine.adapters.lora import Linears
from envkit.engine.adapters.updates import Update
from envkit.engine.attention.kv_cache import CachedConversation, KVCache
from envkit.engine.attention.layouts import DecodeLayout, PrefillLayout, context_length, register
from envkit.engine.attention.ragged import RaggedLayout
from envkit.engine.batching import RequestSize, assign_slots, waves
from envkit.engine.head import Head
from envkit.engine.protocol import AdapterEngine, Completion, Request, Sampling, uniforms
from envkit.engine.sampling import draw
from envkit.engine.stop_strings import StopStrings
from envkit.errors import ContractError, ModelError
from envkit.runtime.stop import ShouldStop, never, raise_if_stopped

#: Shares of the memory for keys and values: for rows that are decoded together, and for conversations that
#: may continue. The last quarter holds those of the call before, until they are copied.
_DECODED_SHARE, _HELD_SHARE = 0.5, 0.25
#: Chunk size of prefill: it fits into a CPU's cache, and buffers are reused instead of page-faulted.
_PREFILL_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class _Branch:
    """Requests whose answers are equal so far. They are decoded as one row until their draws differ.

    Args:
        prompt: index of their prompt in the wave.
        context: tokens of their prompt.
        requests: their indices.
        ids: tokens drawn so far.
        logprobs: of those.
    """

    prompt: int
    context: int
    requests: list[int]
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return self.context + len(self.ids)

    def children(self, tokens: Sequence[int], logprobs: Sequence[float]) -> list[_Branch]:
        """Split the branch by the tokens that its requests have drawn."""
        by_token: dict[int, _Branch] = {}
        for request, token, logprob in zip(self.requests, tokens, logprobs, strict=False):
            if token not in by_token:
                ids, all_logprobs = [*self.ids, token], [*self.logprobs, logprob]
                by_token[token] = _Branch(self.prompt, self.context, [], ids, all_logprobs)
            by_token[token].requests.append(request)
        return [*by_token.values()]


@dataclass(frozen=True, slots=True)
class _Start:
    """A prefilled wave, ready to draw the first tokens. Rows of layout and logits are branches."""

    prefix: PrefillLayout
    lengths: list[int]
    layout: DecodeLayout
    logits_RV: Tensor
    branches: list[_Branch]


@final
class TorchEngine(AdapterEngine):
    """Samples from a transformers causal language model.

    Answers to one prompt form a tree: their common beginning is decoded once. Batch composition depends on
    requests and draws only, never on timing. The same calls in the same order since `load` give the same bits
    (on the same machine, build and thread count).

    Args:
        model: the model to sample from, without adapters. Its modules stay unchanged and its weights are
            shared; a CPU holds a prepacked copy of them (see `envkit.engine.prepacked`).
        stop_ids: ids that end a turn.
        max_rows: largest number of requests decoded together.
        kv_cache_bytes: memory for keys and values.
        decode: turns ids into text, special tokens included. Stop strings need it.
        head: the model's vocabulary projection, if it is to be shared.
    """

    def __init__(
        self,
        model: Any,
        stop_ids: Sequence[int],
        max_rows: int = 256,
        kv_cache_bytes: int = 2 * 2**30,
        decode: Callable[[Sequence[int]], str] | None = None,
        head: Head | None = None,
    ) -> None:
        #: The model's linear layers with their adapters.
        self.linears = Linears(model)
        rewritten = self.linears.model
        rewritten.set_attn_implementation(register())
        rewritten.eval()
        self._decoder = rewritten.get_decoder()
        self._head = head or Head(rewritten.get_output_embeddings())
        self.device = rewritten.device
        #: Tokens that the model reads at most, the answer included.
        self._longest = context_length(model.config)
        self._stop = frozenset(stop_ids)
        self._max_rows, self._text = max_rows, decode
        self._adapters = 0
        #: Tokens whose keys and values fit into ``kv_cache_bytes``.
        self.cache_tokens = int(kv_cache_bytes / self._cache_bytes_per_token())
        self._max_tokens = int(_DECODED_SHARE * self.cache_tokens)
        self._cache = KVCache(int(_HELD_SHARE * self.cache_tokens))

    def load(self, adapters: Sequence[Mapping[str, Update]]) -> None:
        """Replace all adapters; see `envkit.engine.adapters.updates.updates_of`.

        Raises:
            ModelError: one is for another model.
        """
        self.forget()
        self.linears.load(adapters)
        self._adapters = len(adapters)

    @property
    def held_tokens(self) -> int:
        return self._cache.max_tokens

    def holds(self, request: Request) -> bool:
        return self._held(request) is not None

    def _held(self, request: Request) -> CachedConversation | None:
        return self._cache.get(request.adapter, request.prompt_ids[: request.earlier_tokens])

    def forget(self) -> None:
        """Drop cached KV state. Continued conversations are prefilled again."""
        self._cache.clear()

    def close(self) -> None:
        """Drop cached KV state. The weights stay: the learner shares them."""
        self.forget()

    @property
    def longest(self) -> int:
        return self._longest

    @torch.no_grad()
    def stream(
        self, requests: Sequence[Request], sampling: Sampling, should_stop: ShouldStop = never
    ) -> Generator[tuple[int, Completion]]:
        cached: dict[int, CachedConversation] = {}
        new: dict[int, RequestSize] = {}
        old: dict[int, RequestSize] = {}
        for index, request in enumerate(requests):
            if not 0 <= request.adapter < max(self._adapters, 1):
                raise ContractError(
                    f"a request is for adapter {request.adapter}; the engine was given {self._adapters}, "
                    "numbered from 0"
                )
            if len(request.prompt_ids) >= self.longest:
                raise ModelError(
                    f"a prompt has {len(request.prompt_ids)} tokens; the model reads {self.longest}, the "
                    "answer included; use shorter tasks, or a model with a longer context"
                )
            if (cache := self._held(request)) is None:
                new[index] = RequestSize(len(request.prompt_ids), (request.adapter, request.prompt_ids))
            else:
                cached[index], read = cache, cache.prompt_length + len(cache.row)
                old[index] = RequestSize(
                    cache.prompt_length,
                    (id(cache.prefix), cache.prompt),
                    len(cache.row),
                    len(request.prompt_ids) - read,
                )
        self._cache.clear()
        limits = self._max_rows, self._max_tokens
        for wave in waves(new, sampling.max_new_tokens, *limits):
            start = self._start_new(wave, requests, sampling.max_new_tokens, should_stop)
            yield from self._decode(start, wave, requests, sampling, should_stop)
            del start  # frees its buffers before the next wave
        for wave in waves(old, sampling.max_new_tokens, *limits):
            start = self._start_cached(wave, requests, cached, sampling.max_new_tokens, should_stop)
            for index in (index for group in wave for index in group):
                del cached[index]  # copied into the wave's buffers
            yield from self._decode(start, wave, requests, sampling, should_stop)
            del start

    def _start_new(
        self, wave: list[list[int]], requests: Sequence[Request], budget: int, should_stop: ShouldStop
    ) -> _Start:
        """Prefill new prompts."""
        firsts = [requests[group[0]] for group in wave]
        lengths = [len(first.prompt_ids) for first in firsts]
        prefix, logits_NV = self._prefill(firsts, should_stop)
        branches = [_Branch(prompt, lengths[prompt], group) for prompt, group in enumerate(wave)]
        layout = DecodeLayout(
            prefix,
            torch.tensor(lengths, device=self.device),
            range(len(wave)),
            room=sum(map(len, wave)),
            slots=budget,
        )
        return _Start(prefix, lengths, layout, logits_NV, branches)

    def _start_cached(
        self,
        wave: list[list[int]],
        requests: Sequence[Request],
        cached: Mapping[int, CachedConversation],
        budget: int,
        should_stop: ShouldStop,
    ) -> _Start:
        """Prefill the new tokens of continued conversations."""
        firsts = [cached[group[0]] for group in wave]
        lengths = [first.prompt_length for first in firsts]
        prefix = PrefillLayout.of(
            [(first.prefix, first.prompt, length) for first, length in zip(firsts, lengths, strict=True)]
        )
        branches: list[_Branch] = []
        for prompt, group in enumerate(wave):
            same: dict[tuple[int, ...], list[int]] = {}
            for index in group:
                same.setdefault(requests[index].prompt_ids, []).append(index)
            branches += [_Branch(prompt, len(ids), owners) for ids, owners in same.items()]
        leads = [branch.requests[0] for branch in branches]
        rows = [cached[index].row for index in leads]
        read = [cached[index].prompt_length + len(cached[index].row) for index in leads]
        added = [requests[index].prompt_ids[start:] for index, start in zip(leads, read, strict=True)]
        fresh = max(map(len, added))
        layout = DecodeLayout(
            prefix,
            torch.tensor(lengths, device=self.device),
            [branch.prompt for branch in branches],
            room=sum(map(len, wave)),
            slots=max(map(len, rows)) + fresh + budget,
        )
        layout.restore(rows)
        adapters = [requests[group[0]].adapter for group in wave]
        logits: list[Tensor] = []
        for piece in pieces([len(ids) for ids in added], _PREFILL_TOKENS):
            raise_if_stopped(should_stop)
            layout.select(piece)
            width = max(map(len, added[piece]))
            logits.append(self._read(added[piece], read[piece], width, layout, adapters))
        layout.advance([len(ids) for ids in added])
        layout.select(slice(0, len(branches)))
        return _Start(prefix, lengths, layout, torch.cat(logits), branches)

    def _decode(
        self,
        start: _Start,
        wave: list[list[int]],
        requests: Sequence[Request],
        sampling: Sampling,
        should_stop: ShouldStop,
    ) -> Generator[tuple[int, Completion]]:
        """Decode one wave. Each of its lists has the request indices of one prompt."""
        layout, logits_RV, branches = start.layout, start.logits_RV, start.branches
        indices = [index for group in wave for index in group]
        draw_of = {index: number for number, index in enumerate(indices)}
        keys = [requests[index].rng_key for index in indices]
        draws = [torch.from_numpy(uniforms(key, sampling.max_new_tokens)) for key in keys]
        draws_AT = torch.stack(draws).to(self.device)
        adapters = [requests[group[0]].adapter for group in wave]
        strings = self.stop_strings(sampling)

        for step in range(sampling.max_new_tokens):
            raise_if_stopped(should_stop)
            widest = max(len(branch.requests) for branch in branches)
            # Pad the shorter lists: a branch with fewer requests draws again with its first one's number.
            owners = [
                [*branch.requests, *branch.requests[:1] * (widest - len(branch.requests))]
                for branch in branches
            ]
            numbers_RO = draws_AT[[[draw_of[index] for index in owner] for owner in owners], step]
            tokens, logprobs = map(to_list, draw(logits_RV, numbers_RO, sampling))
            following: list[_Branch | None] = []
            more: list[tuple[int, _Branch]] = []
            for row, branch in enumerate(branches):
                alive: list[_Branch] = []
                for child in branch.children(tokens[row], logprobs[row]):
                    if stop := self.stop_reason(child.ids, child.length, sampling, strings):
                        completion = self._end(child, stop, row, start, requests)
                        yield from ((request, completion) for request in child.requests)
                    else:
                        alive.append(child)
                following.append(alive[0] if alive else None)
                more += [(row, child) for child in alive[1:]]
            if not any(following):
                return
            chosen = assign_slots([child is not None for child in following], len(more))
            arranged = [*((row, child) for row, child in enumerate(following)), *more]
            branches = [child for _, child in (arranged[number] for number in chosen) if child is not None]
            layout.reorder([arranged[number][0] for number in chosen])
            last = [branch.ids[-1] for branch in branches]
            positions = [branch.length - 1 for branch in branches]
            logits_RV = self.next_logits(last, positions, layout, adapters)
            layout.advance()

    def _end(
        self, branch: _Branch, stop: str, row: int, start: _Start, requests: Sequence[Request]
    ) -> Completion:
        """Build the branch's completion; keep its KV state for requests that continue."""
        completion = Completion(tuple(branch.ids), tuple(branch.logprobs), stop)
        continuing = [requests[index] for index in branch.requests if requests[index].keep_cache]
        if continuing:
            conversation = CachedConversation(
                start.prefix, branch.prompt, start.lengths[branch.prompt], start.layout.row_cache(row)
            )
            self._cache.add(continuing[0].adapter, continuing[0].prompt_ids + completion.ids, conversation)
        return completion

    def stop_strings(self, sampling: Sampling) -> StopStrings:
        """Return what detects the stop strings of one conversation or several.

        Raises:
            ContractError: the engine was made without ``decode``.
        """
        if sampling.stop_strings and self._text is None:
            raise ContractError("stop strings need an engine that was made with `decode`")
        return StopStrings(sampling.stop_strings, self._text or str)

    def stop_reason(
        self, ids: Sequence[int], length: int, sampling: Sampling, strings: StopStrings
    ) -> str | None:
        """Why an answer ends with its last id, as in `Completion.stop`; ``None`` if it goes on.

        Args:
            ids: of the answer so far.
            length: tokens of prompt and answer so far.
            sampling: has the token budget.
            strings: as `stop_strings` returned them.
        """
        if ids[-1] in self._stop or strings.end(ids):
            return "stop"
        return "length" if len(ids) == sampling.max_new_tokens or length == self.longest else None

    def next_logits(
        self,
        last: Sequence[int],
        positions: Sequence[int],
        layout: DecodeLayout | RaggedLayout,
        adapters: Sequence[int],
    ) -> Tensor:
        """Decode one token per row: logits (R, V) after each row's last id, which stands at its position."""
        token_R1 = torch.tensor([[token] for token in last], device=self.device)
        position_R1 = torch.tensor([[position] for position in positions], device=self.device)
        return self._head(self.forward(token_R1, position_R1, layout, adapters)[:, 0])

    def _prefill(self, prompts: Sequence[Request], should_stop: ShouldStop) -> tuple[PrefillLayout, Tensor]:
        """Prefill all prompts; returns their KV cache and the logits (N, V) after each last token."""
        longest = max(len(request.prompt_ids) for request in prompts)
        prefix = PrefillLayout(len(prompts), longest)
        adapters = [request.adapter for request in prompts]
        logits: list[Tensor] = []
        count = max(_PREFILL_TOKENS // longest, 1)
        for start in range(0, len(prompts), count):
            raise_if_stopped(should_stop)
            piece = [request.prompt_ids for request in prompts[start : start + count]]
            prefix.select(slice(start, start + len(piece)))
            logits.append(self._read(piece, [0] * len(piece), max(map(len, piece)), prefix, adapters))
        return prefix, torch.cat(logits)

    def _read(
        self,
        added: Sequence[Sequence[int]],
        read: Sequence[int],
        width: int,
        layout: PrefillLayout | DecodeLayout,
        adapters: Sequence[int],
    ) -> Tensor:
        """Run new ids of each row, after ``read`` cached ones; returns the logits (B, V) after the last."""
        ids_BS = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in added], device=self.device)
        position_B = torch.tensor(read, device=self.device)
        positions_BS = position_B[:, None] + torch.arange(width, device=self.device)
        hidden = self.forward(ids_BS, positions_BS, layout, adapters)
        last = torch.stack([row[len(ids) - 1] for row, ids in zip(hidden, added, strict=True)])
        return self._head(last)

    @torch.no_grad()
    def _cache_bytes_per_token(self) -> int:
        """Size of one token's KV cache over all layers."""
        layout, token_11 = PrefillLayout(1, 1), torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.forward(token_11, token_11, layout, [0])
        return sum(part.element_size() * part.numel() for part in (*layout.keys, *layout.values))

    @torch.no_grad()
    def forward(
        self,
        ids_BS: Tensor,
        positions_BS: Tensor,
        layout: PrefillLayout | DecodeLayout | RaggedLayout,
        adapters: Sequence[int],
    ) -> Tensor:
        """Hidden states (B, S, width). ``adapters`` has one number per prompt of the layout."""
        self.linears.set_row_adapters([adapters[prompt] for prompt in layout.prompts])
        return self._decoder(
            input_ids=ids_BS, position_ids=positions_BS, use_cache=False, layout=layout
        ).last_hidden_state


def pieces(lengths: Sequence[int], limit: int) -> Iterator[slice]:
    """Cut rows into consecutive pieces of at most ``limit`` tokens, padding included, but at least one row.

    >>> [*pieces([3, 4, 9, 1, 1], 10)]
    [slice(0, 2, None), slice(2, 3, None), slice(3, 5, None)]
    """
    start = widest = 0
    for row, length in enumerate(lengths):
        widest = max(widest, length)
        if row > start and widest * (row - start + 1) > limit:
            yield slice(start, row)
            start, widest = row, length
    yield slice(start, len(lengths))


def to_list(values: Tensor) -> list[Any]:
    """``Tensor.tolist`` with a type."""
    return cast("list[Any]", values.tolist())
