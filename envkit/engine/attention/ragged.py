"""KV cache of rows that join and leave at any time, each with a length of its own.

Rows live on shelves. A shelf has a fixed number of rows of one capacity, is made when a row needs it, and is
freed with its last row. So a row never moves, memory follows the rows that are there, and attention is one
call per shelf and layer, over no more than the shelf's longest row.

Shapes: R rows, H query heads, K key/value heads, D head size, S new tokens, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from envkit.engine.attention.layouts import UNSUPPORTED_LAYERS, partial_attention
from envkit.errors import ModelError

#: Smallest capacity of a row; others are this times a power of two.
_SMALLEST = 64
#: A shelf has at most this many rows, and at most this many tokens unless a single row has more.
_SHELF_ROWS, _SHELF_TOKENS = 8, 4096


@final
class _Shelf:
    """Keys and values of up to ``rows`` rows of ``capacity`` tokens, layer by layer."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.free = [*range(rows)]


@dataclass(slots=True, eq=False)
class Slot:
    """A row's place.

    Args:
        shelf: holds its keys and values.
        index: of the row on the shelf.
        length: its tokens whose keys and values are computed.
    """

    shelf: _Shelf
    index: int
    length: int = 0


@dataclass(frozen=True, slots=True)
class _Part:
    """The selected rows of one shelf.

    Args:
        shelf: theirs.
        slots: theirs, by their positions on the shelf.
        batch: their positions in the batch; a slice, if they are consecutive.
        rows: their positions on the shelf, likewise.
        rows_R: the same as a tensor.
        starts_R: number of tokens before the new ones.
        counts: new tokens of each row, without padding.
        end: tokens of the longest row after this pass, padding not counted: T of ``bias``.
        bias: (R, 1, S, T), masks what a token may not see.
    """

    shelf: _Shelf
    slots: Sequence[Slot]
    batch: slice | Tensor
    rows: slice | Tensor
    rows_R: Tensor
    starts_R: Tensor
    counts: Sequence[int]
    end: int
    bias: Tensor


@final
class RaggedLayout:
    """Lays out rows of different lengths.

    Args:
        max_tokens: limit of the tokens of all shelves.
        device: of keys and values.
    """

    def __init__(self, max_tokens: int, device: torch.device | str = "cpu") -> None:
        self._max_tokens, self._device = max_tokens, device
        self._shelves: list[_Shelf] = []
        self._parts: list[_Part] = []
        #: Where each row of the batch stands among those of the parts; ``None`` if at the same place.
        self._places_R: Tensor | None = None
        self._selected: Sequence[Slot] = ()
        self._counts: Sequence[int] = ()
        #: The number of each selected row, as the engine asks for.
        self.prompts: Sequence[int] = ()

    @property
    def tokens(self) -> int:
        """Tokens of all shelves, free places included."""
        return sum(shelf.rows * shelf.capacity for shelf in self._shelves)

    def fits(self, tokens: int) -> bool:
        """True if a row of this many tokens fits when all others have left."""
        return tokens <= self._max_tokens

    def add(self, tokens: int) -> Slot | None:
        """Reserve a place for a row of at most ``tokens`` tokens; ``None`` if memory is full."""
        capacity = min(_capacity(tokens), self._max_tokens)
        shelf = next((shelf for shelf in self._shelves if shelf.capacity == capacity and shelf.free), None)
        if shelf is None:
            left = (self._max_tokens - self.tokens) // capacity
            rows = min(_SHELF_ROWS, max(_SHELF_TOKENS // capacity, 1), left)
            if rows < 1:
                return None
            shelf = _Shelf(rows, capacity)
            self._shelves.append(shelf)
        index = min(shelf.free)  # consecutive rows are read without a copy
        shelf.free.remove(index)
        for part in (*shelf.keys, *shelf.values):
            part[index] = 0  # masked tokens must be finite, and the row before may have been broken
        return Slot(shelf, index)

    def remove(self, slot: Slot) -> None:
        """Free a row's place, and its shelf if that is empty then."""
        slot.shelf.free.append(slot.index)
        if len(slot.shelf.free) == slot.shelf.rows:
            self._shelves.remove(slot.shelf)

    def copy(self, source: Slot, target: Slot, tokens: int) -> None:
        """Copy the keys and values of a row's first ``tokens`` tokens to another, which has as many then."""
        for parts, into in (
            (source.shelf.keys, target.shelf.keys),
            (source.shelf.values, target.shelf.values),
        ):
            for layer, part in enumerate(parts):
                if layer == len(into):
                    into.append(self._room(target.shelf, part))
                into[layer][target.index, :, :tokens] = part[source.index, :, :tokens]
        target.length = tokens

    def select(self, slots: Sequence[Slot], counts: Sequence[int]) -> None:
        """Select the rows of the next forward pass and how many new tokens each has.

        Tokens are padded on the right. Rows of a shelf that stand together, in its order, are not copied.
        """
        self._selected, self._counts = slots, counts
        self.prompts = range(len(slots))
        parts = by_shelf(slots)
        self._parts = [self._part(numbers) for numbers in parts]
        order = [number for part in parts for number in part]
        is_arranged = order == [*range(len(order))]
        self._places_R = None if is_arranged else torch.tensor(order, device=self._device).argsort()

    def advance(self) -> None:
        """Count the new tokens of the selected rows as computed."""
        for slot, count in zip(self._selected, self._counts, strict=True):
            slot.length += count

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        _, heads, fresh, size = query.shape
        kv = key.shape[1]
        outs = [
            self._attend(
                part, layer, query[part.batch].reshape(-1, kv, heads // kv * fresh, size), key, value, scale
            )
            for part in self._parts
        ]
        out = torch.cat(outs)
        out = out if self._places_R is None else out[self._places_R]
        return out.reshape(-1, heads, fresh, size).transpose(1, 2)

    def _attend(
        self, part: _Part, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        """Attention of one shelf's rows; ``query`` has the heads of a key head side by side."""
        shelf = part.shelf
        if layer == len(shelf.keys) and key.shape == value.shape:
            shelf.keys.append(self._room(shelf, key))
            shelf.values.append(self._room(shelf, value))
        if layer >= len(shelf.keys):
            raise ModelError(UNSUPPORTED_LAYERS)
        read: list[Tensor] = []
        for stored, new in ((shelf.keys[layer], key[part.batch]), (shelf.values[layer], value[part.batch])):
            if key.shape[2] == 1:
                stored[part.rows_R, :, part.starts_R] = new[:, :, 0]
            else:
                for slot, row, count in zip(part.slots, new, part.counts, strict=True):
                    stored[slot.index, :, slot.length : slot.length + count] = row[:, :count]
            read.append(stored[part.rows, :, : part.end])
        bias = part.bias.to(query.dtype)
        if key.shape[2] > 1:
            bias = bias.repeat(1, 1, query.shape[2] // key.shape[2], 1)
        return partial_attention(query, read[0], read[1], bias, scale)[0]

    def _part(self, batch: Sequence[int]) -> _Part:
        slots = [self._selected[number] for number in batch]
        counts = [self._counts[number] for number in batch]
        rows, fresh = [slot.index for slot in slots], max(self._counts)
        rows_R = torch.tensor(rows, device=self._device)
        starts_R = torch.tensor([slot.length for slot in slots], device=self._device)
        end = max(slot.length + count for slot, count in zip(slots, counts, strict=True))
        last_RS = starts_R[:, None] + torch.arange(fresh, device=self._device)
        hidden_RST = torch.arange(end, device=self._device) > last_RS[..., None]
        bias = torch.zeros(hidden_RST.shape, device=self._device).masked_fill_(hidden_RST, float("-inf"))
        return _Part(
            slots[0].shelf,
            slots,
            _index(batch, self._device),
            _index(rows, self._device),
            rows_R,
            starts_R,
            counts,
            end,
            bias[:, None],
        )

    @staticmethod
    def _room(shelf: _Shelf, like: Tensor) -> Tensor:
        """Zeros for a shelf's rows, of the heads and head size of ``like`` (..., K, any, D)."""
        return like.new_zeros(shelf.rows, like.shape[-3], shelf.capacity, like.shape[-1])


def by_shelf(slots: Sequence[Slot]) -> list[list[int]]:
    """Positions of slots, those of each shelf together and in its order."""
    together: dict[int, list[int]] = {}
    for number, slot in enumerate(slots):
        together.setdefault(id(slot.shelf), []).append(number)
    return [sorted(numbers, key=lambda number: slots[number].index) for numbers in together.values()]


def _index(numbers: Sequence[int], device: torch.device | str) -> slice | Tensor:
    """An index of these numbers, which needs no copy if they are consecutive."""
    first, count = numbers[0], len(numbers)
    if [*numbers] == [*range(first, first + count)]:
        return slice(first, first + count)
    return torch.tensor(numbers, device=device)


def _capacity(tokens: int) -> int:
    """Room of a row of so many tokens.

    >>> [_capacity(tokens) for tokens in (1, 64, 65, 1000)]
    [64, 64, 128, 1024]
    """
    capacity = _SMALLEST
    while capacity < tokens:
        capacity *= 2
    return capacity
