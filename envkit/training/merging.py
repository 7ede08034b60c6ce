"""Merge adapters of one base into one without training: the baseline of training them together."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from envkit.errors import UsageError
from envkit.models import ModelRef, model_errors
from envkit.models.adapter_folder import BASE, recorded_control, require_fit, write_manifest
from envkit.runtime.files import read_json_object
from envkit.training.checkpoint import new_adapter_folder
from envkit.training.learner.base_model import load_base

#: PEFT's ways to merge. ``cat`` is the exact sum of the updates, with the sum of the ranks. ``linear`` adds
#: each factor of k updates, divided by the root of k. That is their sum, too, if they share the first factor,
#: which adapters of one training seed nearly do; else it is their mean, and what each does to the others'
#: factors. ``dare_linear`` (arXiv:2311.03099) leaves out random weights first. ``ties`` (arXiv:2306.01708)
#: leaves out the smallest, and takes of each weight the mean of those whose sign is in the majority.
METHODS: Final = ("cat", "linear", "ties", "dare_linear")
#: Methods that add factors. With weights of 1, updates that share one would be added k times.
_ADDED: Final = ("linear", "dare_linear")
#: Changes whenever a merge of the same adapters does, so that none of before is taken for one of today.
MERGING: Final = 2
#: Share of the weights that ``ties`` and ``dare_linear`` keep.
_DENSITY: Final = 0.5
#: Settings of adapters that PEFT cannot merge, or merges in part; and what such an adapter has.
_UNMERGED: Final = {
    "lora_bias": "biases, as a steering vector",
    "modules_to_save": "weights of its own, from full fine-tuning",
}


def require_method(method: str) -> None:
    """Raise if there is no such way to merge.

    Raises:
        UsageError: see above.
    """
    if method not in METHODS:
        raise UsageError(f"no way to merge is named {method!r}; expected one of: {', '.join(METHODS)}")


def merge_adapters(
    ref: ModelRef, adapters: Sequence[Path], output: Path, method: str, *, seed: int = 0
) -> None:
    """Merge adapters with equal weights, and write the result as an adapter folder.

    Updates are added, not averaged, as far as the method can: unrelated skills should not be halved.

    Args:
        ref: their base model.
        adapters: folders of two or more.
        output: the folder to write; it must not exist.
        method: one of `METHODS`.
        seed: of the weights that ``dare_linear`` leaves out.

    Raises:
        UsageError: no such method, fewer than two adapters, or their ranks differ and ``method`` is not
            ``"cat"``.
        ModelError: an adapter is damaged or does not fit the base.
        StoreError: the folder exists or cannot be written.
    """
    from peft import PeftModel

    require_method(method)
    if len(adapters) < 2:
        raise UsageError(f"found {len(adapters)} adapter to merge; expected two or more")
    for folder in adapters:
        require_fit(folder, ref)
        settings = read_json_object(folder / "adapter_config.json")
        for key, meaning in _UNMERGED.items():
            if settings.get(key):
                raise UsageError(f"{folder} has {meaning}; only plain LoRA can be merged")
    base, _ = load_base(ref, "float32")
    names = [f"adapter {number}" for number in range(len(adapters))]
    with (
        warnings.catch_warnings(action="ignore", category=FutureWarning),  # PEFT's, of transformers
        model_errors(f"not adapters for {ref.id}: {', '.join(map(str, adapters))}"),
    ):
        model: Any = PeftModel.from_pretrained(base, str(adapters[0]), adapter_name=names[0])
        for folder, name in zip(adapters[1:], names[1:], strict=True):
            model.load_adapter(str(folder), adapter_name=name)
    ranks = [model.peft_config[name].r for name in names]
    if method != "cat" and len({*ranks}) > 1:
        raise UsageError(f"{method} merges adapters of one rank, found {ranks}; merge them with 'cat'")
    density = {"density": _DENSITY} if method in ("ties", "dare_linear") else {}
    weight = 1 / len(names) if method in _ADDED else 1.0  # PEFT multiplies each factor by its root
    with torch.random.fork_rng():  # the caller's draws go on as if there were none here
        torch.manual_seed(seed)
        weights = [weight] * len(names)
        model.add_weighted_adapter(names, weights, "default", combination_type=method, **density)
    with new_adapter_folder(output) as making:
        model.save_pretrained(making, safe_serialization=True, selected_adapters=["default"])
        controls = {recorded_control(folder) for folder in adapters}
        control = {"control": controls.pop()} if len(controls) == 1 else {}
        (making / BASE).write_text(json.dumps({"model": ref.id, "digest": ref.digest, **control}))
        write_manifest(making, {"model": ref.id, "base": ref.digest, "merged": [*map(str, adapters)]})
