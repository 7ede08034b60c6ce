"""Linear layers for sampling: fused, and with a LoRA adapter per row.

Layers with the same input become one matrix product. LoRA updates are computed beside the base's weights,
in their dtype, and never merged, as in the learner. So the weights are shared with the learner, switching
adapters is cheap, and rows with different adapters form one batch.

Shapes: B rows, S tokens, M adapters, N of them in the batch, R their largest rank.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from envkit.engine.prepacked import PrepackedLinear
from envkit.engine.rectangle import Rectangle
from envkit.errors import ContractError, ModelError

#: Layers of one module that read the same input, by their names in transformers.
_FUSIBLE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True, slots=True)
class Update:
    """The LoRA update of one layer: ``up @ down``, with the scale multiplied in.

    Args:
        down: (r, in), float32.
        up: (out, r), float32.
    """

    down: Tensor
    up: Tensor


def updates_of(peft_model: Any, adapter: str) -> dict[str, Update]:
    """Extract the LoRA updates of one adapter of a PEFT model, by layer name in its base.

    Raises:
        ContractError: the model has no adapter of that name.
        ModelError: the adapter is not a plain LoRA of linear layers.
    """
    from peft.tuners.lora import LoraLayer

    if adapter not in peft_model.peft_config:
        raise ContractError(f"no adapter {adapter!r}; there are: {', '.join(peft_model.peft_config)}")
    updates: dict[str, Update] = {}
    for name, module in peft_model.base_model.model.named_modules():
        layer: Any = module
        if not isinstance(module, LoraLayer):
            continue
        unsupported = adapter in layer.lora_embedding_A
        if adapter in layer.lora_A:
            down, up = layer.lora_A[adapter], layer.lora_B[adapter]
            unsupported = up.bias is not None
            scaled = up.weight.detach().float() * layer.scaling[adapter]
            updates[name] = Update(down.weight.detach().float(), scaled)
        if unsupported:
            raise ModelError(f"adapter {adapter!r} changes {name} in a way that the engine does not support")
    return updates


def copy_without_weights(model: Any) -> Any:
    """Copy a model's modules. The copy can replace them; it shares the weights."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


@dataclass(frozen=True, slots=True)
class Chosen:
    """The adapters of the rows of a forward pass.

    Args:
        adapters: their numbers. None: all rows are the base's.
        subset: the same as an index: a slice if they are consecutive.
        rows: the rows that have an adapter; ``None`` for all.
        rectangle: those rows by adapter; ``None`` if there is one adapter, or none, for all rows.
    """

    adapters: frozenset[int]
    subset: slice | Tensor = field(default_factory=lambda: slice(0))
    rows: Tensor | None = None
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
        #: Which adapters change nothing: rows of the base cost no product.
        self._empty: list[bool] = []
        self.chosen: Chosen = Chosen(frozenset())
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
        self._empty = [not adapter for adapter in adapters]
        for product, paths in self._products:
            product.load([[adapter.get(path) for path in paths] for adapter in adapters])

    def put(self, number: int, adapter: Mapping[str, Update]) -> None:
        """Replace one adapter, or add one with the next number; the others stay. An empty one is the base.

        Raises:
            ModelError: as in `load`; nothing has changed then.
        """
        self.require_fit(adapter)
        self._empty[number : number + 1] = [not adapter]
        for product, paths in self._products:
            product.put(number, len(self._empty), [adapter.get(path) for path in paths])

    def keep(self, count: int) -> None:
        """Drop the adapters from number ``count`` on, and free memory that none needs."""
        del self._empty[count:]
        for product, _ in self._products:
            product.keep(count)

    def cost_bytes(self, number: int, adapter: Mapping[str, Update]) -> int:
        """Memory of all adapters if this one is put among them."""
        count = max(len(self._empty), number + 1)
        return sum(
            product.cost_bytes(count, [adapter.get(path) for path in paths])
            for product, paths in self._products
        )

    @property
    def adapter_bytes(self) -> int:
        """Memory of all adapters."""
        return sum(product.adapter_bytes for product, _ in self._products)

    def choose(self, adapters_B: Sequence[int]) -> None:
        """Choose the adapter of each row of the next forward pass; -1 is the base."""
        rows = [row for row, adapter in enumerate(adapters_B) if not self._is_base(adapter)]
        present = sorted({adapters_B[row] for row in rows})
        if len(present) < 2 and len(rows) in (0, len(adapters_B)):
            self.chosen = Chosen(frozenset(present))
            return
        position = {adapter: index for index, adapter in enumerate(present)}
        self.chosen = Chosen(
            frozenset(present),
            self._subset(present),
            torch.tensor(rows, device=self._device) if len(rows) < len(adapters_B) else None,
            Rectangle([position[adapters_B[row]] for row in rows], len(present), self._device),
        )

    def _subset(self, present: Sequence[int]) -> slice | Tensor:
        """Index of these adapters in the stacks. If they stand together, none is copied."""
        if present[-1] - present[0] == len(present) - 1:
            return slice(present[0], present[-1] + 1)
        return torch.tensor(present, device=self._device)

    def _is_base(self, adapter: int) -> bool:
        return adapter < 0 or not self._empty or self._empty[adapter]

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
        owner: knows the chosen adapters.
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
        self._base = PrepackedLinear(self._weight, bias, [layer.weight for layer in layers])
        self._downs_MRI: Tensor | None = None
        self._ups_MOR: Tensor | None = None
        #: Rank of each adapter; the stacks have room for the largest.
        self._ranks: dict[int, int] = {}
        #: Copies of the stacks' parts for the adapters of the last batch, which often is the next one's too.
        self._gathered: tuple[frozenset[int], Tensor, Tensor] | None = None
        self._last_input: Tensor | None = None
        self._last_outputs: Sequence[Tensor] = ()

    def load(self, adapters: Sequence[Sequence[Update | None]]) -> None:
        """Stack the updates: one per adapter and layer, or ``None``."""
        self._downs_MRI = self._ups_MOR = self._gathered = None
        self._ranks = {}
        if not any(update for adapter in adapters for update in adapter):
            return
        stacks = self._reserve(len(adapters), max(map(_rank, adapters)))
        for number, adapter in enumerate(adapters):
            self._write(stacks, number, adapter)

    def put(self, number: int, count: int, adapter: Sequence[Update | None]) -> None:
        """Replace the updates of one of ``count`` adapters; the others stay."""
        self._gathered = None
        if self._downs_MRI is not None or any(adapter):
            self._write(self._reserve(count, _rank(adapter)), number, adapter)

    def keep(self, count: int) -> None:
        """Drop the updates of all adapters but the first ``count``, and room for a rank that none has."""
        self._gathered = None
        self._ranks = {number: rank for number, rank in self._ranks.items() if number < count}
        rank = max(self._ranks.values(), default=0)
        downs, ups = self._downs_MRI, self._ups_MOR
        if not rank:
            self._downs_MRI = self._ups_MOR = None
        elif downs is not None and ups is not None and (len(downs) > count or downs.shape[1] > rank):
            # Copies: a view would hold the memory of what is dropped.
            self._downs_MRI = downs[:count, :rank].clone()
            self._ups_MOR = self._new_ups(len(self._downs_MRI), rank).copy_(ups[:count, :, :rank])

    def cost_bytes(self, count: int, adapter: Sequence[Update | None]) -> int:
        """Memory of ``count`` adapters, if one of them has these updates."""
        rank = max(_rank(adapter), 0 if self._downs_MRI is None else self._downs_MRI.shape[1])
        return count * rank * (self.width + sum(self.sizes)) * self._weight.element_size()

    @property
    def adapter_bytes(self) -> int:
        """Memory of the adapters' updates."""
        stacks = (self._downs_MRI, self._ups_MOR)
        return sum(stack.numel() * stack.element_size() for stack in stacks if stack is not None)

    def _reserve(self, count: int, rank: int) -> tuple[Tensor, Tensor]:
        """Make room for so many adapters of that rank beside those that are there; returns the stacks."""
        downs, ups = self._downs_MRI, self._ups_MOR
        if downs is None or ups is None or len(downs) < count or downs.shape[1] < rank:
            held, held_rank = (0, 0) if downs is None else downs.shape[:2]
            count, rank = max(count, held), max(rank, held_rank)
            self._downs_MRI = self._weight.new_zeros(count, rank, self.width)
            self._ups_MOR = self._new_ups(count, rank)
            if downs is not None and ups is not None:
                self._downs_MRI[:held, :held_rank], self._ups_MOR[:held, :, :held_rank] = downs, ups
            return self._downs_MRI, self._ups_MOR
        return downs, ups

    def _new_ups(self, count: int, rank: int) -> Tensor:
        """Zeros (M, O, R).

        In bfloat16, the numbers of a rank stand together: products take less than half the time, to the same
        bits. In float32 the bits would differ, and less time would be saved.
        """
        outputs = sum(self.sizes)
        if self._weight.dtype == torch.bfloat16:
            return self._weight.new_zeros(count, rank, outputs).transpose(1, 2)
        return self._weight.new_zeros(count, outputs, rank)

    def _write(self, stacks: tuple[Tensor, Tensor], number: int, adapter: Sequence[Update | None]) -> None:
        """Write the updates of an adapter over those that had its number."""
        downs_MRI, ups_MOR = stacks
        downs_MRI[number], ups_MOR[number] = 0, 0
        self._ranks[number] = _rank(adapter)
        used = 0
        for update, (start, stop) in zip(adapter, pairwise([0, *accumulate(self.sizes)]), strict=True):
            if update is not None:
                ranks = slice(used, used := used + len(update.down))
                downs_MRI[number, ranks] = update.down
                ups_MOR[number, start:stop, ranks] = update.up

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
        out_BSO = self._base(x_BSI)
        chosen = self._owner.chosen
        if self._downs_MRI is None or self._ups_MOR is None or not chosen.adapters:
            return out_BSO
        if chosen.rectangle is None:
            [number] = chosen.adapters
            inner_NR = linear(x_BSI, self._downs_MRI[number]).flatten(0, -2)
            out_BSO.flatten(0, -2).addmm_(inner_NR, self._ups_MOR[number].T)
            return out_BSO
        downs_NRI, ups_NOR = self._stacks_of(chosen, self._downs_MRI, self._ups_MOR)
        by_adapter = chosen.rectangle.fold(x_BSI if chosen.rows is None else x_BSI[chosen.rows])
        inner = torch.bmm(by_adapter.flatten(1, 2), downs_NRI.transpose(1, 2))
        update = torch.bmm(inner, ups_NOR.transpose(1, 2))
        updates = chosen.rectangle.unfold(update.view(*by_adapter.shape[:-1], -1))
        if chosen.rows is None:
            out_BSO += updates
        else:
            out_BSO.index_add_(0, chosen.rows, updates)
        return out_BSO

    def _stacks_of(self, chosen: Chosen, downs_MRI: Tensor, ups_MOR: Tensor) -> tuple[Tensor, Tensor]:
        """The stacked updates of the chosen adapters."""
        if isinstance(chosen.subset, slice):
            return downs_MRI[chosen.subset], ups_MOR[chosen.subset]
        if self._gathered is None or self._gathered[0] != chosen.adapters:
            by_rank = ups_MOR.transpose(1, 2)
            ups = (
                by_rank[chosen.subset] if by_rank.is_contiguous() else ups_MOR[chosen.subset].transpose(1, 2)
            )
            self._gathered = (chosen.adapters, downs_MRI[chosen.subset], ups.transpose(1, 2))
        return self._gathered[1:]


def _rank(adapter: Sequence[Update | None]) -> int:
    """Rank of an adapter's update of fused layers: the sum of theirs."""
    return sum(len(update.down) for update in adapter if update)


@final
class _Part(nn.Module):
    """Replaces a linear layer by its part of a fused product."""

    def __init__(self, product: _Product, number: int) -> None:
        super().__init__()
        self._product, self._number = product, number

    def forward(self, x_BSI: Tensor) -> Tensor:
        return self._product.part(x_BSI, self._number)
