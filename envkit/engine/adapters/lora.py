"""Linear layers for sampling: fused, and with an adapter per row.

Layers with the same input become one matrix product. LoRA updates are computed beside the base's weights,
in their dtype, and never merged, as in the learner. So the weights are shared with the learner, switching
adapters is cheap, and rows with different adapters form one batch. An adapter of full fine-tuning brings
weights of its own instead.

Shapes: B rows of a batch, S tokens, I inputs, O outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from envkit.engine.adapters.stacks import AdapterStacks
from envkit.engine.adapters.updates import Update
from envkit.engine.attention.rectangle import Rectangle
from envkit.engine.prepacked import PrepackedLinear
from envkit.errors import ModelError

#: Layers of one module that read the same input, by their names in transformers.
_FUSIBLE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def copy_without_weights(model: Any) -> Any:
    """Copy a model's modules. The copy can replace them; it shares the weights."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


@dataclass(frozen=True, slots=True)
class RowAdapters:
    """The adapters of the rows of a forward pass.

    Args:
        positions: adjacent positions in the stacks, of the batch's adapters; empty if all rows use the base.
        rows: rows that use an adapter, as a slice if they are adjacent; ``None`` if all do.
        rectangle: groups those rows by adapter; ``None`` if no row uses one, or all use the same.
    """

    positions: range = range(0)
    rows: Tensor | slice | None = None
    rectangle: Rectangle | None = None


@final
class Linears:
    """All linear layers of a model but its head, with adapters.

    Args:
        model: a transformers model. It keeps its modules and shares its weights. The weights of fused layers
            are moved side by side in memory.
    """

    def __init__(self, model: Any) -> None:
        #: The rewritten model.
        self.model: Any = copy_without_weights(model)
        self._products: list[tuple[_Product, list[str]]] = []
        self._device = model.device
        #: Paths of the layers with a bias.
        self._biased: set[str] = set()
        #: Where each adapter stands in the stacks, without a gap. One that changes nothing has no place: its
        #: rows are the base's, and cost no product.
        self._positions: dict[int, int] = {}
        #: Adapters that the stacks have room for.
        self._room = 0
        self.row_adapters = RowAdapters()
        originals: dict[str, Any] = dict(model.named_modules())
        head = self.model.get_output_embeddings()
        for parent, module in [*self.model.named_modules()]:
            children = {
                name: child
                for name, child in module.named_children()
                if type(child) is nn.Linear and child is not head
            }
            for names in _groups(children):
                paths = [f"{parent}.{name}" if parent else name for name in names]
                product = _Product(self, [originals[path] for path in paths])
                self._biased |= {path for path in paths if originals[path].bias is not None}
                self._products.append((product, paths))
                for number, name in enumerate(names):
                    setattr(module, name, _Part(product, number))

    def load(self, adapters: Sequence[Mapping[str, Update]]) -> None:
        """Replace all adapters; they are numbered from 0. Without any, the base answers.

        Raises:
            ModelError: an adapter changes a layer that is missing, is the head, or has another shape.
        """
        for adapter in adapters:
            self.require_fit(adapter)
        numbers = [number for number, adapter in enumerate(adapters) if adapter]
        self._positions = {number: position for position, number in enumerate(numbers)}
        self._room = len(numbers)
        for product, paths in self._products:
            product.load([[adapters[number].get(path) for path in paths] for number in numbers])

    def add(self, number: int, adapter: Mapping[str, Update], room: int, most: int | None = None) -> None:
        """Add an adapter under a free number; the others stay. An empty one is the base.

        Args:
            number: of this adapter in `set_row_adapters` and `drop`.
            adapter: its updates.
            room: adapters to make room for, if the stacks must be allocated anew.
            most: largest number of adapters that memory may be reserved for; ``None`` for any. Stacks with
                more room are allocated anew, with ``room``.

        Raises:
            ModelError: as in `load`; nothing has changed then.
        """
        self.require_fit(adapter)
        if not adapter:
            return
        parts = self._by_product(adapter)
        is_full = len(self._positions) == self._room
        is_too_large = most is not None and self._room > most
        if is_full or is_too_large or any(not product.stacks.holds(updates) for product, updates in parts):
            self._room = max(room, len(self._positions) + 1)
            for product, updates in parts:
                product.stacks.resize(self._room, updates)
        for product, updates in parts:
            product.append(updates)
        self._positions[number] = len(self._positions)

    def drop(self, number: int) -> None:
        """Drop an adapter. The last one takes its place; room for a rank that no other has is freed."""
        position = self._positions.pop(number, None)
        if position is None:
            return
        for other, last in self._positions.items():
            if last == len(self._positions):
                self._positions[other] = position
        self._room = self._room if self._positions else 0
        for product, _ in self._products:
            product.drop(position)
            product.stacks.resize(self._room)

    def bytes_alone(self, adapter: Mapping[str, Update]) -> int:
        """Memory of an adapter if there is no other."""
        parts = self._by_product(adapter)
        stacked = sum(product.stacks.bytes_alone(updates) for product, updates in parts)
        return stacked + self.weight_bytes_of(adapter)

    def bytes_each(self, adapter: Mapping[str, Update]) -> int:
        """Memory of each adapter if this one is among them: every one has room for the highest rank.

        Weights of its own are not counted.
        """
        return sum(product.stacks.bytes_each(updates) for product, updates in self._by_product(adapter))

    def weight_bytes_of(self, adapter: Mapping[str, Update]) -> int:
        """Memory of the weights that an adapter brings in place of the base's."""
        parts = self._by_product(adapter)
        return sum(product.weight_bytes for product, updates in parts if _brings_weights(updates))

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights that the adapters brought in place of the base's."""
        return sum(product.weight_bytes * product.own_weights for product, _ in self._products)

    @property
    def adapter_bytes(self) -> int:
        """Memory of all adapters, and of the room for more."""
        return sum(product.stacks.bytes for product, _ in self._products) + self.weight_bytes

    def position(self, number: int) -> int:
        """Return the position of an adapter in the stacks; -1 for the base.

        If a batch has its rows in this order, and as many of each adapter, `set_row_adapters` lets them stay
        where they are. Otherwise each product copies them.
        """
        return self._positions.get(number, -1)

    def set_row_adapters(self, adapters_B: Sequence[int]) -> None:
        """Choose the adapter of each row of the next forward pass; -1 is the base."""
        rows = [row for row, adapter in enumerate(adapters_B) if adapter in self._positions]
        present = {adapters_B[row] for row in rows}
        positions = self._stand_together(present)
        if len(present) < 2 and len(rows) in (0, len(adapters_B)):
            self.row_adapters = RowAdapters(positions)
            return
        some: Tensor | slice | None = None
        if len(rows) < len(adapters_B):
            stand_together = rows[-1] - rows[0] < len(rows)
            some = slice(rows[0], rows[-1] + 1) if stand_together else torch.tensor(rows, device=self._device)
        self.row_adapters = RowAdapters(
            positions,
            some,
            Rectangle(
                [self._positions[adapters_B[row]] - positions.start for row in rows],
                len(present),
                self._device,
            ),
        )

    def _stand_together(self, present: Collection[int]) -> range:
        """Positions of these adapters, which change places with others until they stand together.

        So a batch needs no copy of its adapters. Batches change little, and most changes move one adapter.
        """
        count, places = len(present), sorted(self._positions[number] for number in present)
        if not places or places[-1] - places[0] < count:
            return range(places[0], places[0] + count) if places else range(0)
        number_at = {position: number for number, position in self._positions.items()}
        strangers = [position for position in range(count) if number_at[position] not in present]
        outside = [position for position in places if position >= count]
        for one, other in zip(strangers, outside, strict=True):
            for product, _ in self._products:
                product.swap(one, other)
            self._positions[number_at[one]], self._positions[number_at[other]] = other, one
        return range(count)

    def _by_product(self, adapter: Mapping[str, Update]) -> list[tuple[_Product, list[Update | None]]]:
        return [(product, [adapter.get(path) for path in paths]) for product, paths in self._products]

    def require_fit(self, adapter: Mapping[str, Update]) -> None:
        """Refuse an adapter of another model.

        Raises:
            ModelError: it changes a layer that is missing, is the head, or has another shape.
        """
        shapes = {
            path: (size, product.width)
            for product, paths in self._products
            for path, size in zip(paths, product.sizes, strict=True)
        }
        for path, update in adapter.items():
            shape = (*update.up.shape[:-1], *update.down.shape[1:])
            if (expected := shapes.get(path)) != shape:
                problem = (
                    "is no linear layer below the head" if expected is None else f"has shape {expected} here"
                )
                raise ModelError(f"an adapter of shape {shape} changes {path}, which {problem}")
            if (rank := update.up.shape[-1]) != len(update.down):
                raise ModelError(f"an adapter's matrices of {path} have ranks {len(update.down)} and {rank}")
            if update.shift is not None and update.shift.shape != shape[:1]:
                raise ModelError(
                    f"an adapter shifts {path} by numbers of shape {[*update.shift.shape]}; expected "
                    f"{[*shape[:1]]}"
                )
            bias = None if update.bias is None else update.bias.shape
            if update.weight is not None and bias != (shape[:1] if path in self._biased else None):
                raise ModelError(f"an adapter's bias of {path} has shape {bias}; the base's differs")


def _groups(layers: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Names of the layers to fuse, product by product."""
    fused = [group for group in _FUSIBLE if all(name in layers for name in group)]
    fused = [group for group in fused if len({_input(layers[name]) for name in group}) == 1]
    in_group = {name for group in fused for name in group}
    return [*fused, *((name,) for name in layers if name not in in_group)]


def _input(layer: Any) -> tuple[int, bool]:
    """Input width and presence of a bias; fused layers must agree on both."""
    return layer.in_features, layer.bias is None


@final
class _Product:
    """Linear layers with the same input, fused into one matrix product.

    Args:
        owner: knows the adapters of the rows.
        layers: their weights become parts of one.
    """

    def __init__(self, owner: Linears, layers: Sequence[nn.Linear]) -> None:
        self._owner = owner
        self.sizes = [layer.out_features for layer in layers]
        self.width = layers[0].in_features
        self._weight = torch.cat([layer.weight.data for layer in layers])
        for layer, part in zip(layers, self._split(self._weight, 0), strict=True):
            layer.weight.data = part
        biases: list[Any] = [layer.bias for layer in layers]
        bias = None if biases[0] is None else torch.cat([bias.data for bias in biases])
        if bias is not None:
            for layer_bias, part in zip(biases, self._split(bias, 0), strict=True):
                layer_bias.data = part
        self._bias = bias
        self._base = PrepackedLinear(self._weight, bias, [layer.weight for layer in layers])
        self.stacks = AdapterStacks(self._weight, self.width, self.sizes)
        #: The weights that an adapter brings in place of the base's, by position.
        self._own: list[PrepackedLinear | None] = []
        self._last_input: Tensor | None = None
        self._last_outputs: Sequence[Tensor] = ()

    def load(self, adapters: Sequence[Sequence[Update | None]]) -> None:
        """Take the updates of all adapters: one per adapter and layer, or ``None``."""
        self._own = []
        self.stacks.clear(len(adapters), adapters)
        for adapter in adapters:
            self.append(adapter)

    def append(self, adapter: Sequence[Update | None]) -> None:
        """Take the updates of an adapter, behind those of the others, where there is room."""
        self.stacks.append(adapter)
        self._own.append(self._replaced(adapter) if _brings_weights(adapter) else None)

    def _replaced(self, adapter: Sequence[Update | None]) -> PrepackedLinear:
        """This product with an adapter's weights and biases, and the base's for layers without."""
        weights, biases = [*self._split(self._weight, 0)], []
        if self._bias is not None:
            biases = [*self._split(self._bias, 0)]
        for number, update in enumerate(adapter):
            if update is None or update.weight is None:
                continue
            weights[number] = update.weight.to(self._weight)
            if update.bias is not None:
                biases[number] = update.bias.to(self._weight)
        return PrepackedLinear(torch.cat(weights), torch.cat(biases) if biases else None, ())

    def drop(self, position: int) -> None:
        """Drop an adapter; the last one takes its place."""
        self.swap(position, len(self._own) - 1)
        self.stacks.pop()
        self._own.pop()

    def swap(self, one: int, other: int) -> None:
        """Let two adapters change places."""
        self.stacks.swap(one, other)
        self._own[one], self._own[other] = self._own[other], self._own[one]

    @property
    def weight_bytes(self) -> int:
        """Memory of weights and biases in place of the base's."""
        bias = 0 if self._bias is None else len(self._bias)
        return (self._weight.numel() + bias) * self._weight.element_size()

    @property
    def own_weights(self) -> int:
        """Adapters that brought weights."""
        return sum(own is not None for own in self._own)

    def part(self, x_BSI: Tensor, number: int) -> Tensor:
        """The output of one layer. All are computed when the first is asked for."""
        if len(self.sizes) == 1:
            return self._compute(x_BSI)
        if self._last_input is not x_BSI:
            self._last_input, self._last_outputs = x_BSI, self._split(self._compute(x_BSI), -1)
        output = self._last_outputs[number]
        if number == len(self.sizes) - 1:  # models ask in order; activations are large
            self._last_input, self._last_outputs = None, ()
        return output

    def _split(self, tensor: Tensor, dim: int) -> Sequence[Tensor]:
        return cast("Sequence[Tensor]", torch.split(tensor, self.sizes, dim))

    def _compute(self, x_BSI: Tensor) -> Tensor:
        asked = self._owner.row_adapters
        if not asked.positions:
            return self._base(x_BSI)
        positions, rows, rectangle = asked.positions, asked.rows, asked.rectangle
        if rectangle is None:
            out_BSO = (self._own[positions.start] or self._base)(x_BSI)
            self.stacks.add_one(out_BSO, x_BSI, positions.start)
            return out_BSO
        out_BSO = self._base(x_BSI)
        for number, own in enumerate(self._own[positions.start : positions.stop]):
            if own is not None:
                mine = torch.tensor(rectangle.rows_of[number], device=x_BSI.device)
                if rows is not None:
                    mine = mine + rows.start if isinstance(rows, slice) else rows[mine]
                out_BSO[mine] = own(x_BSI[mine])
        self.stacks.add(out_BSO, x_BSI, positions, rows, rectangle)
        return out_BSO


def _brings_weights(adapter: Sequence[Update | None]) -> bool:
    """True if an adapter has a weight in place of a base's, of one layer of a product at least."""
    return any(update is not None and update.weight is not None for update in adapter)


@final
class _Part(nn.Module):
    """Replaces a linear layer by its part of a fused product."""

    def __init__(self, product: _Product, number: int) -> None:
        super().__init__()
        self._product, self._number = product, number

    def forward(self, x_BSI: Tensor) -> Tensor:
        return self._product.part(x_BSI, self._number)
