"""Read the changes that an adapter makes to each layer, from a PEFT model or from PEFT's files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from envkit.errors import ContractError, ModelError
from envkit.runtime.files import open_regular_file, read_json_object

_PREFIX: Final = "base_model.model."
_DOWN, _UP, _BIAS = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"


@dataclass(frozen=True, slots=True)
class Update:
    """The update of one layer: ``up @ down``, with the scale multiplied in, and a shift of its output.

    Args:
        down: (r, in), float32.
        up: (out, r), float32.
        shift: (out,), float32: added to every output, whatever the input; ``None`` for none.
        weight: (out, in): stands in place of the base's, after full fine-tuning; ``None`` for the base's.
        bias: (out,): likewise, if the base has one and ``weight`` is given.
    """

    down: Tensor
    up: Tensor
    shift: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def of(cls, down: Tensor, up: Tensor, bias: Tensor | None, scale: float) -> Update:
        """Make an update from PEFT's matrices and its bias, all of which are scaled.

        With a bias and without an effect of the matrices, it is a shift alone: a steering vector.
        """
        if bias is None:
            return cls(down.float(), up.float() * scale)
        if not up.any():
            down, up = down[:0], up[:, :0]
        return cls(down.float(), up.float() * scale, bias.float() * scale)

    @classmethod
    def replacing(cls, weight: Tensor, bias: Tensor | None) -> Update:
        """Make an update that brings a layer's weight and bias of its own."""
        down, up = weight.new_zeros(0, weight.shape[1]), weight.new_zeros(len(weight), 0)
        return cls(down, up, weight=weight, bias=bias)


def updates_of(peft_model: Any, adapter: str) -> dict[str, Update]:
    """Extract the updates of one adapter of a PEFT model, by layer name in its base.

    Raises:
        ContractError: the model has no adapter of that name.
        ModelError: the adapter is neither a plain LoRA of linear layers nor has weights of its own for them.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    if adapter not in peft_model.peft_config:
        raise ContractError(f"no adapter {adapter!r}; there are: {', '.join(peft_model.peft_config)}")
    updates: dict[str, Update] = {}
    for name, module in peft_model.base_model.model.named_modules():
        layer: Any = module
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            own: Any = module.modules_to_save[adapter]
            bias = None if own.bias is None else own.bias.detach()
            updates[name] = Update.replacing(own.weight.detach(), bias)
        if not isinstance(module, LoraLayer):
            continue
        unsupported = adapter in layer.lora_embedding_A
        if adapter in layer.lora_A:
            down, up = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
            bias = layer.lora_B[adapter].bias
            updates[name] = Update.of(
                down, up, None if bias is None else bias.detach(), layer.scaling[adapter]
            )
        if unsupported:
            raise ModelError(f"adapter {adapter!r} changes {name} in a way that the engine does not support")
    return updates


def read_adapter(folder: Path) -> dict[str, Update]:
    """Read the updates of a plain LoRA adapter, a steering vector or full fine-tuning, from PEFT's files.

    Raises:
        ModelError: the files cannot be read, or hold something else than updates of linear layers.
    """
    from safetensors import SafetensorError, torch

    try:
        settings = read_json_object(folder / "adapter_config.json")
        # Not as a mapped file: who replaces it would end this process.
        with open_regular_file(folder / "adapter_model.safetensors") as file:
            tensors = torch.load(file.read())
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder}: the adapter cannot be read ({error})") from error
    if settings.get("modules_to_save"):
        return _read_weights(folder, tensors)
    if settings.get("use_dora"):
        raise ModelError(f"{folder}: use_dora is set; expected a plain LoRA adapter")
    updates: dict[str, Update] = {}
    others = set(tensors)
    for key in sorted(tensors):
        up = key.removesuffix(_DOWN) + _UP
        if key.startswith(_PREFIX) and key.endswith(_DOWN) and up in tensors:
            shapes = [*tensors[key].shape], [*tensors[up].shape]
            if [*map(len, shapes)] != [2, 2] or not 0 < (rank := shapes[0][0]) == shapes[1][1]:
                raise ModelError(
                    f"{folder}: {key} has shape {shapes[0]} and its lora_B {shapes[1]}; expected [r, in] and "
                    "[out, r]"
                )
            path = key.removeprefix(_PREFIX).removesuffix(_DOWN)
            alpha = _alpha_of(path, settings)
            if not isinstance(alpha, int | float) or not math.isfinite(alpha):
                raise ModelError(f"{folder}: lora_alpha is {alpha!r}; expected a number")
            scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
            bias = key.removesuffix(_DOWN) + _BIAS
            if bias in tensors and [*tensors[bias].shape] != shapes[1][:1]:
                raise ModelError(
                    f"{folder}: {bias} has shape {[*tensors[bias].shape]}; expected {shapes[1][:1]}"
                )
            update = Update.of(tensors[key], tensors[up], tensors.get(bias), scale)
            updates[path] = update
            others -= {key, up, bias}
    if others or not updates:
        found = min(others, default="nothing")
        raise ModelError(f"{folder}: found {found}; expected LoRA matrices of linear layers")
    return updates


def _alpha_of(path: str, settings: Mapping[str, Any]) -> Any:
    """Return a layer's ``lora_alpha``: that of the first pattern its path ends with, else the common one."""
    patterns: dict[str, Any] = settings.get("alpha_pattern") or {}
    matching = (alpha for end, alpha in patterns.items() if re.match(rf"(.*\.)?({end})$", path))
    return next(matching, settings.get("lora_alpha"))


def _read_weights(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Update]:
    """Read weights and biases that stand in place of a base's.

    Raises:
        ModelError: a tensor is neither.
    """
    updates: dict[str, Update] = {}
    others = set(tensors)
    for key in sorted(tensors):
        path, _, kind = key.removeprefix(_PREFIX).rpartition(".")
        if not key.startswith(_PREFIX) or kind != "weight" or (weight := tensors[key]).ndim != 2:
            continue
        bias = tensors.get(f"{_PREFIX}{path}.bias")
        updates[path] = Update.replacing(weight, bias)
        others -= {key, f"{_PREFIX}{path}.bias"}
    if others or not updates:
        found = min(others, default="nothing")
        raise ModelError(f"{folder}: found {found}; expected weights and biases of linear layers")
    return updates
