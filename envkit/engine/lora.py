"""Linear layers for sampling: fused, and with a LoRA adapter per row.

Layers with the same input become one matrix product. LoRA updates are computed beside the base's weights,
in their dtype, and never merged, as in the learner. So the weights are shared with the learner, switching
adapters is cheap, and rows with different adapters form one batch.

Shapes: B rows, S tokens, M adapters, N of them in the batch, R their largest rank.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        self._device, self._count = model.device, 0
        #: The adapter of all rows of the next forward pass; or the N adapters in the batch (``None`` for all,
        #: in order) and the rows of each.
        self.chosen: int | tuple[Tensor | None, Rectangle] = 0
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
        shapes = {
            path: (size, product.width)
            for product, paths in self._products
            for path, size in zip(paths, product.sizes, strict=True)
        }
        for adapter in adapters:
            for path, update in adapter.items():
                shape = (len(update.up), update.down.shape[1])
                if (expected := shapes.get(path)) != shape:
                    problem = (
                        "is no linear layer below the head"
                        if expected is None
                        else f"has shape {expected} here"
                    )
                    raise ModelError(f"an adapter of shape {shape} changes {path}, which {problem}")
        self._count = len(adapters)
        for product, paths in self._products:
            product.load([[adapter.get(path) for path in paths] for adapter in adapters])

    def choose(self, adapters_B: Sequence[int]) -> None:
        """Choose the adapter of each row of the next forward pass."""
        present = sorted({*adapters_B})
        if len(present) == 1:
            [self.chosen] = present
            return
        position = {adapter: index for index, adapter in enumerate(present)}
        # If all are in the batch, none is copied.
        subset = torch.tensor(present, device=self._device) if len(present) < self._count else None
        self.chosen = (
            subset,
            Rectangle([position[adapter] for adapter in adapters_B], len(present), self._device),
        )


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
        self._last_input: Tensor | None = None
        self._last_outputs: Sequence[Tensor] = ()

    def load(self, adapters: Sequence[Sequence[Update | None]]) -> None:
        """Stack the updates: one per adapter and layer, or ``None``."""
        self._downs_MRI = self._ups_MOR = None
        if not any(update for adapter in adapters for update in adapter):
            return
        rank = max(sum(len(update.down) for update in adapter if update) for adapter in adapters)
        ends = [0, *accumulate(self.sizes)]
        self._downs_MRI = self._weight.new_zeros(len(adapters), rank, self.width)
        self._ups_MOR = self._weight.new_zeros(len(adapters), ends[-1], rank)
        for number, adapter in enumerate(adapters):
            used = 0
            for update, (start, stop) in zip(adapter, pairwise(ends), strict=True):
                if update is not None:
                    ranks = slice(used, used := used + len(update.down))
                    self._downs_MRI[number, ranks] = update.down
                    self._ups_MOR[number, start:stop, ranks] = update.up

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
        if self._downs_MRI is None or self._ups_MOR is None:
            return out_BSO
        if isinstance(chosen, int):
            inner_NR = linear(x_BSI, self._downs_MRI[chosen]).flatten(0, -2)
            out_BSO.flatten(0, -2).addmm_(inner_NR, self._ups_MOR[chosen].T)
        else:
            subset, rectangle = chosen
            downs_NRI, ups_NOR = (
                stack if subset is None else stack[subset] for stack in (self._downs_MRI, self._ups_MOR)
            )
            by_adapter = rectangle.fold(x_BSI)
            inner = torch.bmm(by_adapter.flatten(1, 2), downs_NRI.transpose(1, 2))
            update = torch.bmm(inner, ups_NOR.transpose(1, 2))
            out_BSO += rectangle.unfold(update.view(*by_adapter.shape[:-1], -1))
        return out_BSO


@final
class _Part(nn.Module):
    """Replaces a linear layer by its part of a fused product."""

    def __init__(self, product: _Product, number: int) -> None:
        super().__init__()
        self._product, self._number = product, number

    def forward(self, x_BSI: Tensor) -> Tensor:
        return self._product.part(x_BSI, self._number)
