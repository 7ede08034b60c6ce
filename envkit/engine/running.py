"""The running batch: rows join at the next tick and leave when they are finished.

A tick admits waiting rows, prefills a bounded number of prompt tokens, and decodes one token of every row
whose prompt is computed. Rows of many adapters and of the base are decoded together (continuous batching: Yu
et al., Orca, OSDI 2022). Forward pass, sampling and stop rules are those of `TorchEngine`.

A prompt is prefilled up to its last token. That token is decoded with all other rows, and so the first token
of an answer needs no step of its own. Prompts of about equal length are prefilled together, because each
forward pass reads all weights. Rows of one owner and adapter share the KV state of equal beginnings.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from envkit.engine.adapters.pool import BASE, AdapterPool
from envkit.engine.attention.ragged import RaggedLayout, Slot, by_shelf
from envkit.engine.prefix import common_prefix_length
from envkit.engine.protocol import Sampling, uniforms
from envkit.engine.sampling import draw
from envkit.engine.stop_strings import StopStrings
from envkit.engine.torch_engine import TorchEngine, to_list
from envkit.errors import EnvkitError, ModelError

#: Prompt tokens that are prefilled in a tick: between two tokens of running rows (see `RunningBatch`), and
#: while none runs.
PREFILL_TOKENS, _PREFILL_TOKENS_ALONE = 128, 2048
#: Largest number of tokens in one forward pass of a prefill: buffers fit into a CPU's cache.
_PASS_TOKENS = 1024
#: Largest number of new tokens times tokens in a prefill: the mask of attention has several numbers for each.
_PREFILL_PAIRS = 2**22
#: Padding in a forward pass, as a share of the tokens that are prefilled.
_PADDING = 0.25
#: Largest factor by which a tick prefills more while many rows are prefilled.
_MOST_PREFILLED = 4


@dataclass(frozen=True, slots=True)
class RowRequest:
    """One row to decode.

    Args:
        prompt_ids: all ids of the context, at least one.
        rng_key: integers that address the random draws, as in `Request`.
        sampling: of this row alone.
        adapter: name of a registered adapter; ``None`` is the base.
        top_logprobs: number of most likely tokens to report with each token; ``None`` reports no `Likely`.
        owner: rows of different owners share no KV state, so that the time to a first token tells nobody
            what others have asked.
    """

    prompt_ids: tuple[int, ...]
    rng_key: tuple[int, ...]
    sampling: Sampling
    adapter: str | None = None
    top_logprobs: int | None = None
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Likely:
    """Log-probabilities of the model itself, before temperature and truncation.

    Args:
        drawn: of the token that was drawn.
        top: the most likely ids with theirs, the most likely first.
    """

    drawn: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token of a row.

    Args:
        row: the row's number.
        token: its id.
        logprob: natural log of its probability under the distribution it was drawn from, as in `Completion`;
            NaN if the engine does not report it (vLLM).
        stop: why the row has ended, as in `Completion.stop`; ``None`` if it goes on.
        likely: what the model itself said, if the request asked for it.
        waited_s: seconds until the row was admitted.
    """

    row: int
    token: int
    logprob: float
    stop: str | None
    likely: Likely | None = None
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Failed:
    """A row that ended with an error.

    Args:
        row: its number; -1 if it was never submitted, or if vLLM decodes.
        error: the reason. After a `DecoderStopped`, all other rows have failed too; otherwise they go on.
    """

    row: int
    error: EnvkitError


@dataclass(slots=True, eq=False)
class _Row:
    """A row that waits or runs."""

    number: int
    request: RowRequest
    strings: StopStrings
    ids: list[int]
    draws: list[float] = field(default_factory=list[float])
    #: Length of the beginning that the prompt has in common with another row's, by that row's number.
    common: dict[int, int] = field(default_factory=dict[int, int])
    adapter: int = BASE
    slot: Slot | None = None
    came_s: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0

    @property
    def place(self) -> Slot:
        """The place of a row that runs."""
        assert self.slot is not None
        return self.slot

    @property
    def unread(self) -> int:
        """Tokens to prefill before the row can be decoded."""
        return len(self.ids) - 1 - self.place.length

    @property
    def room(self) -> int:
        """Tokens that the row needs memory for. The last one that is drawn is never read."""
        return len(self.request.prompt_ids) + self.request.sampling.max_new_tokens - 1


@final
class RunningBatch:
    """Decodes rows that come and go. Not thread-safe.

    Rows are admitted in order of arrival. If the first cannot be admitted yet, because memory or its adapter
    is missing, the later ones wait too; otherwise a large row could wait forever. Admitted rows go on.

    Args:
        engine: samples the tokens; the batch replaces its adapters.
        pool: the adapters.
        max_rows: largest number of rows that run.
        prefill_tokens: largest number of prompt tokens that are prefilled between two decoded tokens. It
            doubles if twice as many admitted rows are prefilled as decoded, and so on, up to four times.
    """

    def __init__(
        self,
        engine: TorchEngine,
        pool: AdapterPool,
        max_rows: int = 64,
        prefill_tokens: int = PREFILL_TOKENS,
    ) -> None:
        self._engine, self._pool = engine, pool
        self._max_rows, self._prefill_tokens = max_rows, prefill_tokens
        self._layout = RaggedLayout(engine.cache_tokens, engine.device)
        self._waiting: deque[_Row] = deque()
        self._running: list[_Row] = []
        self._cancelled: set[int] = set()
        self._count = 0

    @property
    def waiting(self) -> int:
        """Number of rows that wait to be admitted."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of rows that were admitted and have not ended."""
        return len(self._running)

    @property
    def cache_tokens(self) -> int:
        """Tokens of keys and values that memory is allocated for."""
        return self._layout.tokens

    def uses(self, adapter: str) -> bool:
        """True if a row waits or runs with an adapter."""
        return any(row.request.adapter == adapter for row in (*self._waiting, *self._running))

    def submit(self, request: RowRequest) -> int:
        """Let a row wait to be admitted; returns its number.

        Raises:
            ModelError: the prompt exceeds the model's context, or memory for keys and values.
            ContractError: the engine cannot do what the sampling asks for.
        """
        length = len(request.prompt_ids)
        if not 0 < length < self._engine.longest:
            raise ModelError(
                f"the prompt has {length} tokens; expected 1 to {self._engine.longest - 1}: the model reads "
                f"{self._engine.longest}, the answer included"
            )
        self._count += 1
        strings = self._engine.stop_strings(request.sampling)
        row = _Row(self._count, request, strings, [*request.prompt_ids])
        if not self._layout.fits(self._room(row)):
            raise ModelError(
                f"prompt and answer have up to {self._room(row)} tokens; memory for keys and values holds "
                f"{self._engine.cache_tokens}; ask for fewer tokens"
            )
        self._waiting.append(row)
        return row.number

    def cancel(self, number: int) -> None:
        """End a row; its memory is free at the next tick. A row that has ended already is ignored."""
        self._cancelled.add(number)

    def tick(self) -> list[Drawn | Failed]:
        """Advance every row by at most one token.

        Returns:
            What became of the rows, in the order they were admitted. Empty if there is nothing to do, or if
            only prompts were prefilled.
        """
        self._drop_cancelled()
        events: list[Drawn | Failed] = [*self._admit()]
        self._prefill()
        ready = [row for row in self._running if not row.unread]
        if ready:
            events += self._decode(ready)
        return events

    def _drop_cancelled(self) -> None:
        if not self._cancelled:
            return
        self._waiting = deque(row for row in self._waiting if row.number not in self._cancelled)
        for row in [row for row in self._running if row.number in self._cancelled]:
            self._leave(row)
        self._cancelled.clear()

    def _admit(self) -> Iterator[Failed]:
        """Admit waiting rows while there is memory; yield those whose adapters cannot be read."""
        while self._waiting and len(self._running) < self._max_rows:
            row = self._waiting[0]
            try:
                adapter = self._pool.acquire(row.request.adapter, wait=not self._running)
            except EnvkitError as error:
                self._waiting.popleft()
                yield Failed(row.number, error)
                continue
            if adapter is None:
                return
            row.slot = self._layout.add(self._room(row))
            if row.slot is None:
                self._pool.release(row.request.adapter)
                return
            row.adapter, row.waited_s = adapter, time.monotonic() - row.came_s
            row.draws = uniforms(row.request.rng_key, row.request.sampling.max_new_tokens).tolist()
            self._running.append(self._waiting.popleft())

    def _prefill(self) -> None:
        """Compute a part of the prompts, the oldest row's first."""
        unread = sum(row.unread > 0 for row in self._running)
        ready = len(self._running) - unread
        budget = _PREFILL_TOKENS_ALONE
        if ready:
            budget = self._prefill_tokens * min(max(unread // ready, 1), _MOST_PREFILLED)
        while pieces := self._pieces(budget):
            rows = self._arranged([*pieces])
            counts = [pieces[row] for row in rows]
            width, starts = max(counts), [row.place.length for row in rows]
            ids = [
                [*row.ids[start : start + count], *[0] * (width - count)]
                for row, start, count in zip(rows, starts, counts, strict=True)
            ]
            device = self._engine.device
            positions = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
            self._layout.select([row.place for row in rows], counts)
            adapters = [row.adapter for row in rows]
            self._engine.forward(torch.tensor(ids, device=device), positions, self._layout, adapters)
            self._layout.advance()
            budget -= sum(counts)

    def _pieces(self, budget: int) -> dict[_Row, int]:
        """Choose the rows of one forward pass, and how many tokens of each prompt.

        Rows first get a copy of the KV state that others have of their prompts' beginnings. There are no
        pieces if nothing is left to read, or if the rest of the budget is too small to pay for a pass.
        """
        pieces: dict[_Row, int] = {}
        width = longest = 0
        for number, row in enumerate(self._running):
            if not budget:
                break
            if not row.unread:
                continue
            source, start = self._source(row)
            unread = len(row.ids) - 1 - start
            if any(
                2 * (self._common_length(row, other) - start) > unread for other in self._running[:number]
            ):
                continue  # an older row is about to compute most of it
            count = min(unread, budget, _PASS_TOKENS, max(_PREFILL_PAIRS // (start + budget), 1))
            if count < unread and budget < self._prefill_tokens // 2:
                break  # a small piece costs about as much as a large one: all weights are read for it
            rows, wider, longer = len(pieces) + 1, max(width, count), max(longest, start + count)
            padded, tokens = rows * wider, sum(pieces.values()) + count
            if pieces and (
                padded > min(_PASS_TOKENS, (1 + _PADDING) * tokens) or padded * longer > _PREFILL_PAIRS
            ):
                continue  # in a pass of its own, or with others of its length
            if source is not None:
                self._layout.copy(source.place, row.place, start)
            if count:
                pieces[row], width, longest = count, wider, longer
                budget -= count
        return pieces

    def _source(self, row: _Row) -> tuple[_Row | None, int]:
        """The row that has computed the longest beginning of a row's prompt, and its length.

        ``None`` if that is the row itself.
        """
        best, longest = None, row.place.length
        for other in self._running:
            common = min(self._common_length(row, other), other.place.length)
            best, longest = (other, common) if common > longest else (best, longest)
        return best, longest

    @staticmethod
    def _common_length(row: _Row, other: _Row) -> int:
        """Length of the beginning that a row's prompt, but for its last token, has in common with another's.

        It is 0 for rows of another adapter or owner.
        """
        if other is row or (other.adapter, other.request.owner) != (row.adapter, row.request.owner):
            return 0
        if other.number not in row.common:
            length = common_prefix_length(row.request.prompt_ids[:-1], other.request.prompt_ids)
            row.common[other.number] = length
        return row.common[other.number]

    def _decode(self, ready: Sequence[_Row]) -> list[Drawn | Failed]:
        """Draw the next token of each row."""
        rows = self._arranged(ready)
        self._layout.select([row.place for row in rows], [1] * len(rows))
        last, positions = [row.ids[-1] for row in rows], [len(row.ids) - 1 for row in rows]
        logits_RV = self._engine.next_logits(last, positions, self._layout, [row.adapter for row in rows])
        self._layout.advance()
        events = self._draw(rows, logits_RV)
        ended = [row for row in rows if isinstance(event := events[row.number], Failed) or event.stop]
        for row in ended:
            self._leave(row)
        return [events[row.number] for row in ready]

    def _arranged(self, rows: Sequence[_Row]) -> list[_Row]:
        """Put rows into the order that needs the fewest copies: by adapter, and by shelf for each."""
        shelved = [rows[number] for part in by_shelf([row.place for row in rows]) for number in part]
        return sorted(shelved, key=lambda row: self._engine.linears.position(row.adapter))

    def _draw(self, rows: Sequence[_Row], logits_RV: Tensor) -> dict[int, Drawn | Failed]:
        """Draw from the logits; rows with equal sampling parameters in one go."""
        events: dict[int, Drawn | Failed] = {}
        groups: dict[tuple[float, float], list[int]] = {}
        is_finite = to_list(logits_RV.sum(dim=-1).isfinite())
        for index, row in enumerate(rows):
            sampling = row.request.sampling
            if is_finite[index]:
                key = (sampling.temperature, sampling.top_p)
                groups.setdefault(key, []).append(index)
            else:
                name = row.request.adapter or "the base model"
                events[row.number] = Failed(
                    row.number, ModelError(f"{name}: the logits are not finite: its weights are broken")
                )
        for indices in groups.values():
            chosen = [rows[index] for index in indices]
            picked_RV = logits_RV if len(indices) == len(rows) else logits_RV[indices]
            wanted = [row.request.top_logprobs is not None for row in chosen]
            plain_RV = torch.log_softmax(picked_RV, dim=-1) if any(wanted) else None
            numbers = [[row.draws[len(row.ids) - len(row.request.prompt_ids)]] for row in chosen]
            numbers_R1 = torch.tensor(numbers, dtype=torch.float64, device=self._engine.device)
            try:
                token_R1, logprob_R1 = draw(picked_RV, numbers_R1, chosen[0].request.sampling)
            except ModelError as error:  # a temperature that is too small
                events |= {row.number: Failed(row.number, error) for row in chosen}
                continue
            tokens = to_list(token_R1[:, 0])
            logprobs = to_list(logprob_R1[:, 0])
            for index, row in enumerate(chosen):
                row.ids.append(tokens[index])
                likely = None
                if plain_RV is not None and (count := row.request.top_logprobs) is not None:
                    likely = _likely(plain_RV[index], tokens[index], count)
                events[row.number] = Drawn(
                    row.number, tokens[index], logprobs[index], self._stop_reason(row), likely, row.waited_s
                )
        return events

    def _stop_reason(self, row: _Row) -> str | None:
        answer = row.ids[len(row.request.prompt_ids) :]
        return self._engine.stop_reason(answer, len(row.ids), row.request.sampling, row.strings)

    def _leave(self, row: _Row) -> None:
        self._running.remove(row)
        self._layout.remove(row.place)
        self._pool.release(row.request.adapter)

    def _room(self, row: _Row) -> int:
        return min(row.room, self._engine.longest)


def _likely(logprobs_V: Tensor, token: int, count: int) -> Likely:
    values, ids = logprobs_V.topk(min(count, len(logprobs_V)))
    top: list[tuple[int, float]] = list(zip(to_list(ids), to_list(values), strict=True))
    return Likely(float(logprobs_V[token]), tuple(top))
