"""The updates of many adapters for one matrix product, side by side in memory.

Shapes: B rows of a batch, W rows of the adapter with the most, S tokens, I inputs, O outputs of one layer or
of all; M adapters that there is room for, N of them in the batch, R ranks of one layer or of all; G groups of
E adapters.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Final, NamedTuple, cast, final

import torch
from torch import Tensor
from torch.nn.functional import linear

from envkit.engine.adapters.updates import Update
from envkit.engine.attention.rectangle import Rectangle

#: Most adapters whose products are computed as one, and most rows that they may have.
_TOGETHER: Final = 4
_TOGETHER_ROWS: Final = 8
#: Choices of adapters whose views of the stacks are kept.
_KEPT_VIEWS: Final = 8


class _Size(NamedTuple):
    """Memory that an adapter takes in a product.

    Args:
        ranks: of each layer.
        has_shift: it shifts an output.
    """

    ranks: tuple[int, ...]
    has_shift: bool = False

    @classmethod
    def of(cls, adapter: Sequence[Update | None]) -> _Size:
        """The size of one update for each layer."""
        ranks = tuple(0 if update is None else len(update.down) for update in adapter)
        return cls(ranks, any(update is not None and update.shift is not None for update in adapter))

    def joined(self, other: _Size) -> _Size:
        """The smallest size that holds both."""
        return _Size(tuple(map(max, self.ranks, other.ranks)), self.has_shift or other.has_shift)


@final
class AdapterStacks:
    """Low-rank updates and shifts of layers that read the same input, of each adapter.

    Args:
        weight: of the layers; the stacks have its dtype and are on its device.
        inputs: I.
        outputs: O of each layer.
    """

    def __init__(self, weight: Tensor, inputs: int, outputs: Sequence[int]) -> None:
        self._weight, self._inputs, self._outputs = weight, inputs, list(outputs)
        #: Whether computing some adapters as one takes less time (measured), and the stacks' order allows it.
        self._may_group = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
        self.clear(0, ())

    def clear(self, room: int, adapters: Iterable[Sequence[Update | None]]) -> None:
        """Drop all adapters; make room for ``room`` others, of the largest size among ``adapters``."""
        #: Size of each adapter, by position; the stacks have room for the largest.
        self._sizes: list[_Size] = []
        #: Whether the numbers of each one are finite, where that matters.
        self._is_finite: list[bool] = []
        self._allocate(room, functools.reduce(_Size.joined, map(_Size.of, adapters), self._size))

    @property
    def _size(self) -> _Size:
        """The smallest size that holds every adapter."""
        return functools.reduce(_Size.joined, self._sizes, _Size((0,) * len(self._outputs)))

    def _allocate(self, room: int, size: _Size) -> None:
        """Make empty stacks."""
        self._room, self._allocated = room, size
        new = self._weight.new_zeros
        self._downs_MRI = new(room, sum(size.ranks), self._inputs)
        #: Of each layer. In bfloat16, the numbers of a rank stand together: products take less than half the
        #: time, to the same bits. In float32 the bits would differ, and less time would be saved.
        self._ups_MRO = [
            new(room, rank, outputs)
            if self._weight.dtype == torch.bfloat16
            else new(room, outputs, rank).transpose(1, 2)
            for rank, outputs in zip(size.ranks, self._outputs, strict=True)
        ]
        self._shifts_MO = new(room if size.has_shift else 0, sum(self._outputs))
        self._views: dict[tuple[range, int], tuple[Tensor, list[Tensor]]] = {}

    def holds(self, adapter: Sequence[Update | None]) -> bool:
        """True if an adapter is no larger than the largest."""
        return self._size.joined(_Size.of(adapter)) == self._size

    def bytes_alone(self, adapter: Sequence[Update | None]) -> int:
        """Memory of an adapter if there is no other."""
        return self._bytes_of(_Size.of(adapter))

    def bytes_each(self, adapter: Sequence[Update | None]) -> int:
        """Memory of each adapter if this one is among them: every one has room for the largest."""
        return self._bytes_of(self._size.joined(_Size.of(adapter)))

    def _bytes_of(self, size: _Size) -> int:
        numbers = sum(
            rank * (self._inputs + outputs) for rank, outputs in zip(size.ranks, self._outputs, strict=True)
        )
        return (numbers + size.has_shift * sum(self._outputs)) * self._weight.element_size()

    @property
    def bytes(self) -> int:
        """Memory of all adapters, and of the room for more."""
        return self._bytes_of(self._allocated) * self._room

    def resize(self, room: int, adapter: Sequence[Update | None] | None = None) -> None:
        """Make room for so many adapters, of this one's size and of all that are there."""
        size = self._size if adapter is None else self._size.joined(_Size.of(adapter))
        if (room, size) == (self._room, self._allocated):
            return
        ranks, downs, ups, shifts = self._allocated.ranks, self._downs_MRI, self._ups_MRO, self._shifts_MO
        self._allocate(room, size)
        kept, count = [min(pair) for pair in zip(ranks, size.ranks, strict=True)], len(self._sizes)
        new_downs, old_downs = _split(self._downs_MRI, size.ranks, 1), _split(downs, ranks, 1)
        for new, old, both in zip(new_downs, old_downs, kept, strict=True):
            new[:count, :both] = old[:count, :both]
        for new, old, both in zip(self._ups_MRO, ups, kept, strict=True):
            new[:count, :both] = old[:count, :both]
        if len(shifts) and len(self._shifts_MO):
            self._shifts_MO[:count] = shifts[:count]

    def append(self, adapter: Sequence[Update | None]) -> None:
        """Write the updates of an adapter, one per layer, behind those of the others, where there is room."""
        position, is_finite = len(self._sizes), True
        for stack in self._stacks():
            stack[position] = 0
        downs = _split(self._downs_MRI[position], self._allocated.ranks, 0)
        layers = pairwise([0, *accumulate(self._outputs)])
        for update, down, ups, (start, stop) in zip(adapter, downs, self._ups_MRO, layers, strict=True):
            if update is None:
                continue
            rank = len(update.down)
            down[:rank] = update.down
            ups[position, :rank] = update.up.T
            if self._may_group:
                is_finite &= bool(update.up.isfinite().all())
            if update.shift is not None:
                self._shifts_MO[position, start:stop] = update.shift
        self._sizes.append(_Size.of(adapter))
        self._is_finite.append(is_finite)

    def pop(self) -> None:
        """Drop the last adapter."""
        self._sizes.pop()
        self._is_finite.pop()

    def swap(self, one: int, other: int) -> None:
        """Let two adapters change places."""
        sizes, finite = self._sizes, self._is_finite
        sizes[one], sizes[other] = sizes[other], sizes[one]
        finite[one], finite[other] = finite[other], finite[one]
        for stack in self._stacks():
            if one != other:
                stack[[one, other]] = stack[[other, one]]

    def _stacks(self) -> list[Tensor]:
        """Those with numbers."""
        return [stack for stack in (self._downs_MRI, *self._ups_MRO, self._shifts_MO) if stack.numel()]

    def add_one(self, out_BSO: Tensor, x_BSI: Tensor, position: int) -> None:
        """Add the update of one adapter to all rows, in place."""
        if self._downs_MRI.numel():
            inner_BSR = linear(x_BSI, self._downs_MRI[position])
            outs = _split(out_BSO.flatten(0, -2), self._outputs, -1)
            inners = _split(inner_BSR.flatten(0, -2), self._allocated.ranks, -1)
            for out, inner, ups in zip(outs, inners, self._ups_MRO, strict=True):
                if ups.numel():
                    out.addmm_(inner, ups[position])
        if len(self._shifts_MO):
            out_BSO += self._shifts_MO[position]

    def add(
        self,
        out_BSO: Tensor,
        x_BSI: Tensor,
        positions: range,
        rows: Tensor | slice | None,
        rectangle: Rectangle,
    ) -> None:
        """Add the updates of some adapters to their rows, in place.

        Args:
            out_BSO: changed.
            x_BSI: the layers' input.
            positions: of the adapters.
            rows: that use one; ``None`` if all do.
            rectangle: groups those rows by adapter, in the order of ``positions``.
        """
        if self._downs_MRI.numel():
            x, each = x_BSI if rows is None else x_BSI[rows], rectangle.widest * x_BSI.shape[1]
            if rectangle.is_rectangular and not isinstance(rows, Tensor):
                self._add_products(out_BSO if rows is None else out_BSO[rows], x, positions, each)
            else:
                x_NWSI = rectangle.fold(x)
                update_NWSO = out_BSO.new_zeros(*x_NWSI.shape[:-1], out_BSO.shape[-1])
                self._add_products(update_NWSO, x_NWSI, positions, each)
                _add(out_BSO, rows, rectangle.unfold(update_NWSO))
        if len(self._shifts_MO):
            shifts_N1O = self._shifts_MO[positions.start : positions.stop, None]
            shifts_RO = rectangle.unfold(shifts_N1O.expand(-1, rectangle.widest, -1))
            _add(out_BSO, rows, shifts_RO[:, None].expand(-1, x_BSI.shape[1], -1))

    def _add_products(self, out: Tensor, x: Tensor, positions: range, rows: int) -> None:
        """Add the products of each adapter to its rows, which stand together; there are as many of each.

        With few rows, most time goes into the start of each adapter's product. So some adapters are computed
        as one: a row meets the matrices of its neighbours too, and what those find is set to zero.
        """
        count = len(positions)
        together = max(1, min(_TOGETHER, _TOGETHER_ROWS // rows))
        if not (self._may_group and all(self._is_finite[positions.start : positions.stop])):
            together = 1  # zero times infinity is not zero
        if rest := count % together:
            out_NWO, x_NWI = out.view(count, rows, -1), x.reshape(count, rows, -1)
            self._add_groups(out_NWO[-rest:], x_NWI[-rest:], positions[-rest:], rows, 1)
            out, x, positions = out_NWO[:-rest], x_NWI[:-rest], positions[:-rest]
        if positions:
            self._add_groups(out, x, positions, rows, together)

    def _add_groups(self, out: Tensor, x: Tensor, positions: range, rows: int, each: int) -> None:
        """Add the products of groups of so many adapters."""
        groups, ranks = len(positions) // each, self._allocated.ranks
        downs_GIR, ups_GRO = self._grouped(positions, groups)
        inner = torch.bmm(x.reshape(groups, each * rows, -1), downs_GIR)
        inner_GWER = inner.view(groups, each * rows, each, sum(ranks))
        if each > 1:
            inner_GWER.masked_fill_(_others(each, rows, x.device), 0)
        inners = _split(inner_GWER, ranks, -1)
        outs = _split(out.view(groups, each * rows, -1), self._outputs, -1)
        for out_GWO, part_GWER, ups in zip(outs, inners, ups_GRO, strict=True):
            if ups.numel():
                out_GWO.baddbmm_(part_GWER.flatten(2), ups)

    def _grouped(self, positions: range, groups: int) -> tuple[Tensor, list[Tensor]]:
        """The matrices of adapters, group by group. Kept for the next forward pass."""
        if (found := self._views.get((positions, groups))) is None:
            at = slice(positions.start, positions.stop)
            downs_GIR = self._downs_MRI[at].view(groups, -1, self._inputs).transpose(1, 2)
            found = downs_GIR, [ups_MRO[at].view(groups, -1, ups_MRO.shape[-1]) for ups_MRO in self._ups_MRO]
            if len(self._views) == _KEPT_VIEWS:
                self._views.clear()
            self._views[positions, groups] = found
        return found


@functools.cache
def _others(adapters: int, rows: int, device: torch.device) -> Tensor:
    """True where an adapter is not a row's: (adapters * rows, adapters, 1)."""
    own = torch.eye(adapters, dtype=torch.bool, device=device)
    return ~own.repeat_interleave(rows, 0)[:, :, None]


def _split(tensor: Tensor, sizes: Sequence[int], dim: int) -> Sequence[Tensor]:
    if len(sizes) == 1:
        return (tensor,)
    return cast("Sequence[Tensor]", torch.split(tensor, list(sizes), dim))


def _add(out_BSO: Tensor, rows: Tensor | slice | None, updates: Tensor) -> None:
    """Add the updates of some rows, or of all, in place."""
    if isinstance(rows, Tensor):
        out_BSO.index_add_(0, rows, updates)
    else:
        out_BSO[slice(None) if rows is None else rows] += updates
