"""Loading a base model: weights and tokenizer from a folder, checked before anything is trained on them."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Generator, Iterable
from typing import Any, cast

import torch
from torch import nn

from envkit.engine.adapters.updates import updates_of
from envkit.engine.attention.layouts import require_plain
from envkit.errors import MissingExtraError, ModelError
from envkit.models import ModelRef, model_errors
from envkit.models.adapter_folder import FULL
from envkit.training.learner.memory import layer_count, tensor_shapes


def load_base(ref: ModelRef, dtype: str) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, on the CPU.

    Args:
        ref: a resolved model.
        dtype: of the weights, ``"float32"`` or ``"bfloat16"``.

    Raises:
        ModelError: the folder is damaged or incomplete, or the engine does not support the architecture; see
            `envkit.engine.attention.layouts.require_plain`.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "train") from error
    _require_layers(ref)
    logging.disable_progress_bar()  # it would break the lines of envkit's own progress display
    with model_errors(f"{ref.path}: not a causal language model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            ref.path, dtype=getattr(torch, dtype), output_loading_info=True
        )
        base, info = cast("tuple[Any, dict[str, Iterable[str]]]", loaded)
        tokenizer = cast("Any", AutoTokenizer.from_pretrained(ref.path))
    # The loaded tensors are views of the mapped file, which would stay in memory beside the engine's copies.
    for parameter in base.parameters():
        parameter.data = parameter.data.clone()
    # transformers fills missing weights with random numbers.
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{ref.path}: the weights lack {missing[0]} ({len(missing)} tensors missing in all); copy or "
            "download the model again"
        )
    with model_errors(f"{ref.path}: cannot run"):
        require_plain(base)
    with model_errors(f"{ref.path}: the tokenizer cannot be used"):
        largest = max(cast("dict[str, int]", tokenizer.get_vocab()).values())
        rows: int = base.get_input_embeddings().num_embeddings
    if largest >= rows:
        raise ModelError(
            f"{ref.path}: the tokenizer has ids up to {largest}, but the model embeds {rows}; "
            "use the tokenizer that belongs to the model"
        )
    return base, tokenizer


def load_tokenizer(ref: ModelRef) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Load the tokenizer of a model, and the shapes of its linear layers without the head; not its weights.

    Returns:
        The tokenizer, and numbers of outputs and inputs by path.

    Raises:
        ModelError: the folder is damaged or incomplete.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "train") from error
    _require_layers(ref)
    with model_errors(f"{ref.path}: not a causal language model"), torch.device("meta"):
        model = cast("Any", AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ref.path)))
        tokenizer = cast("Any", AutoTokenizer.from_pretrained(ref.path))
    return tokenizer, linear_shapes(model)


def _require_layers(ref: ModelRef) -> None:
    """Refuse a configuration with more layers than the weights have tensors: building it would take for ever.

    Raises:
        ModelError: see above, or a weights file is damaged.
    """
    layers = layer_count(ref.path)
    if layers > (tensors := len(tensor_shapes(ref.path))):
        raise ModelError(
            f"{ref.path}: config.json has {layers} layers, but the weights have {tensors} tensors"
        )


@contextlib.contextmanager
def without_false_alarms() -> Generator[None]:
    """Silence PEFT: it uses what transformers warns of, and takes a bias for a damaged matrix."""
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        warnings.filterwarnings("ignore", "`lora_bias=True` was passed")
        warnings.filterwarnings("ignore", r"Adapter '.*': \d+ LoRA tensor\(s\) have invalid shape")
        yield


def add_adapter(base: Any, r: int, alpha: int, seed: int, control: str = "all-linear") -> Any:
    """Put a new adapter on linear layers of a model; returns the PEFT model.

    Args:
        base: the model.
        r, alpha: of LoRA, see `envkit.training.config.TrainConfig`.
        seed: of the initial weights.
        control: what is trained, see `envkit.training.config.TrainConfig`. A steering vector is the bias of a
            LoRA adapter whose matrices have no effect, on the last linear layer of each MLP. Full fine-tuning
            has copies of all layers but the head.

    Raises:
        ModelError: the adapter would change a layer that the engine cannot sample from, or the model's layers
            of attention and MLP cannot be told apart.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import DUMMY_TARGET_MODULES

    from envkit.training.learner.lora_linear import LoraLinear

    is_full = control == FULL
    if is_full:
        _require_linears(base)
    # all-linear: LoRA Without Regret (2025); never lm_head.
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=0.0,
        lora_bias=control == "steering",
        target_modules=DUMMY_TARGET_MODULES if is_full else _layers_of(base, control),
        modules_to_save=sorted({name.rpartition(".")[2] for name in linears_of(base)}) if is_full else None,
        task_type="CAUSAL_LM",
    )
    config._register_custom_module({nn.Linear: LoraLinear})  # pyright: ignore[reportPrivateUsage]
    kinds: dict[str, type] = {name: type(module) for name, module in base.named_modules()}
    # PEFT warns of layers that are refused below, and reads a property by its deprecated name.
    with (
        warnings.catch_warnings(action="ignore"),
        model_errors("this model cannot carry an adapter"),
        torch.random.fork_rng(),  # the caller's draws go on as if there were none here
    ):
        torch.manual_seed(seed)
        model = get_peft_model(base, config)
        if is_full:
            _keep_in_float32(model)
    for name in updates_of(model, "default"):
        if kinds[name] is not nn.Linear:
            raise _unsupported(name, kinds[name])
    return model


def _unsupported(name: str, kind: type) -> ModelError:
    return ModelError(
        f"an adapter would change {name}, a {kind.__name__}; envkit supports nn.Linear "
        "layers only, so no mixture of experts and no GPT-2; use another model"
    )


def _require_linears(base: Any) -> None:
    """Refuse a model that keeps matrices of its layers elsewhere than in linear layers.

    Raises:
        ModelError: it does, so that full fine-tuning would leave them as they are.
    """
    embeddings = {id(base.get_input_embeddings()), id(base.get_output_embeddings())}
    modules: dict[str, nn.Module] = dict(base.named_modules())
    for name, module in modules.items():
        own = [weight for weight in module.parameters(recurse=False) if weight.ndim > 1]
        if own and not isinstance(module, nn.Linear | nn.Embedding) and id(module) not in embeddings:
            raise _unsupported(name, type(module))


def _keep_in_float32(model: Any) -> None:
    """Let the copies that PEFT made of linear layers be trained in float32."""
    from peft.utils import ModulesToSaveWrapper

    from envkit.training.learner.full_linear import FullLinear

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            copies: Any = module.modules_to_save
            copies["default"] = FullLinear(copies["default"])


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Return the shapes of a model's linear layers without the head, (outputs, inputs) by path."""
    return {path: (layer.out_features, layer.in_features) for path, layer in linears_of(model).items()}


def linears_of(base: Any) -> dict[str, Any]:
    """Return the linear layers of a model but its head, by name."""
    return {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and module is not base.get_output_embeddings()
    }


def _layers_of(base: Any, control: str) -> str | list[str]:
    """Names of the layers that an adapter is put on, as PEFT takes them."""
    if control == "all-linear":
        return control
    linears = linears_of(base)
    attention = {name.rpartition(".")[2] for name in linears if "attn" in name or "attention" in name}
    mlp = {name.rpartition(".")[2] for name in linears} - attention
    if control == "steering":
        # Those that write to the residual stream: one in each layer.
        width: int = base.get_input_embeddings().embedding_dim
        mlp = {
            name.rpartition(".")[2]
            for name, module in linears.items()
            if name.rpartition(".")[2] in mlp and module.out_features == width != module.in_features
        }
        names = {name.rpartition(".")[2] for name, _ in base.named_modules()}
        norms = {name for name in names if re.search(r"post_(mlp|feedforward)_\w*norm", name)}
        if norms:
            raise ModelError(
                f"this model normalises what an MLP writes ({min(norms)}), so a vector cannot be added to "
                "its output; use another control"
            )
    chosen = attention if control == "attention" else mlp
    if not attention or not mlp or (control == "steering" and len(mlp) > 1):
        raise ModelError(
            f"control is {control!r}, and the layers of attention ({', '.join(sorted(attention)) or 'none'}) "
            f"and MLP ({', '.join(sorted(mlp)) or 'none'}) cannot be told apart; use 'all-linear'"
        )
    return sorted(chosen)
