"""Estimate the memory that training takes, before the model is loaded. PyTorch is needed for a GPU only."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from envkit.errors import ConfigError, ModelError
from envkit.models import ModelRef, available_bytes
from envkit.models.adapter_folder import FULL
from envkit.runtime.files import open_regular_file, read_json_object
from envkit.training.config import TrainConfig

#: Numbers saved for the backward pass, per token and layer: times the hidden size, and times the width of the
#: feed-forward network (measured on SmolLM2-135M and Qwen2.5-Coder-0.5B).
_SAVED_HIDDEN, _SAVED_WIDE = 10, 4
#: Largest number of rows that the engine decodes at once.
_MAX_ROWS = 256
#: Logits that the learner holds at once, with copies of them.
_LOGITS_BYTES = 3 * 2**27
#: Share of the memory that training leaves free for the keys and values of sampling, and limits, in MB.
_CACHE_SHARE, _MIN_CACHE_MB, _MAX_CACHE_MB = 0.5, 256, 4096
#: Tokens that vLLM's KV cache must hold beside the model's context: a block that stays empty, and a part of
#: another.
_VLLM_BLOCKS = 2 * 128
#: Smallest number of packed tokens that a message proposes.
_MIN_TOKENS = 128
#: If settings leave the packed tokens of a forward pass open: numbers that it may save for the backward
#: pass; fewest and most tokens, and what they are a multiple of. So Qwen2.5-Coder-0.5B gets 768 tokens and
#: SmolLM2-135M 1280.
_SAVED, _LEAST_TOKENS, _MOST_TOKENS, _TOKEN_STEP = 2**29, 768, 2048, 256


def tokens_per_forward(ref: ModelRef, config: TrainConfig) -> int:
    """Packed tokens of one forward and backward pass: what the settings say, or else what fits the model."""
    if config.max_tokens_per_forward:
        return config.max_tokens_per_forward
    saved = max(_saved_per_token(ref), 1)
    return min(max(_SAVED // saved // _TOKEN_STEP * _TOKEN_STEP, _LEAST_TOKENS), _MOST_TOKENS)


def choose_cache_mb(ref: ModelRef, config: TrainConfig, *, trains: bool = True, adapters: int = 1) -> int:
    """Choose the memory for keys and values of sampling: half of what training leaves free on the device."""
    free = available_bytes() if config.device == "cpu" else _free_gpu_bytes()
    left = (free or 0) - sum(estimate_bytes(ref, config, trains=trains, adapters=adapters).values())
    chosen = min(max(int(_CACHE_SHARE * left / 2**20), _MIN_CACHE_MB), _MAX_CACHE_MB)
    if config.engine == "vllm":
        chosen = max(chosen, _least_vllm_cache_mb(ref, config))
    return chosen


def require_memory(ref: ModelRef, config: TrainConfig, *, trains: bool = True, adapters: int = 1) -> None:
    """Refuse a configuration that cannot fit into this machine's memory. Nothing is checked for a GPU.

    Raises:
        ConfigError: the estimate exceeds the available memory; says what takes how much, and which sizes fit.
        ModelError: a weights file of the model is damaged.
    """
    available = available_bytes()
    if config.device != "cpu" or available is None:
        return
    config = replace(config, max_tokens_per_forward=tokens_per_forward(ref, config))
    parts = estimate_bytes(ref, config, trains=trains, adapters=adapters)
    total = sum(parts.values())
    if total <= available:
        return
    listed = ", ".join(f"{name} {_gb(size)}" for name, size in parts.items())
    packs = trains and not _is_trl(config)
    tokens = _fitting_tokens(ref, config, available, adapters) if packs else None
    advice = _advice(max(parts, key=lambda name: parts[name]), config, tokens, trains=trains)
    raise ConfigError(
        f"{'training' if trains else 'loading'} {ref.id} needs at least {_gb(total)} of memory ({listed}); "
        f"this machine has {_gb(available)} available; {advice}"
    )


def is_out_of_memory(error: Exception) -> bool:
    """True if PyTorch could not allocate memory. On a CPU it raises a plain ``RuntimeError``."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


@contextlib.contextmanager
def memory_errors(problem: str, advice: str) -> Generator[None]:
    """Turn PyTorch's failed allocations into a `ModelError` that begins with the problem."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{problem} ({reason}); {advice}") from error


def training_memory_errors(config: TrainConfig) -> contextlib.AbstractContextManager[None]:
    """Turn PyTorch's failed allocations in a run into a `ModelError` that names the settings to lower."""
    learning = "num_generations" if _is_trl(config) else "max_tokens_per_forward"
    lower = f"{learning}, which is {getattr(config, learning)}"
    if config.kv_cache_mb:  # 0 where nothing is sampled
        lower += f", or kv_cache_mb, which is {config.kv_cache_mb}"
    return memory_errors(
        "the run is out of memory",
        f"free some, and resume the run if it has a folder; or begin another with a lower {lower}",
    )


_ADVICE = {
    "weights": "use a smaller model; `envkit models` lists some",
    "adapter": "lower lora_r, which is {config.lora_r}",
    "KV cache": "lower max_completion_length, which is {config.max_completion_length}",
    "random numbers": "lower max_completion_length, which is {config.max_completion_length}",
    "activations": "lower max_tokens_per_forward, which is {config.max_tokens_per_forward}",
    "logits": "use a model with a smaller vocabulary",
}


def _advice(largest: str, config: TrainConfig, tokens: int | None, *, trains: bool) -> str:
    """Say what to change.

    Args:
        largest: what takes the most memory.
        config: the settings.
        tokens: a ``max_tokens_per_forward`` that fits; ``None`` if there is none.
        trains: as in `estimate_bytes`.
    """
    if largest == "adapter" and not trains:
        return "use a machine with more"  # nothing about a trained adapter can be changed
    if largest == "adapter" and config.control == FULL:
        return "use another control, such as all-linear"
    if tokens is not None:
        return f"it fits with max_tokens_per_forward = {tokens}, which makes it slower"
    if largest == "activations" and _is_trl(config):
        return (
            f"lower num_generations, which is {config.num_generations}, or max_completion_length, which is "
            f"{config.max_completion_length}; or use backend 'envkit'"
        )
    if largest == "KV cache" and config.engine == "vllm":
        return "lower kv_cache_mb, or use engine 'torch', whose KV cache may be smaller"
    return _ADVICE[largest].format(config=config)


def _fitting_tokens(ref: ModelRef, config: TrainConfig, available: int, adapters: int) -> int | None:
    """Return a smaller ``max_tokens_per_forward`` that fits, if one does."""
    tokens = config.max_tokens_per_forward // 2
    while tokens >= _MIN_TOKENS:
        smaller = replace(config, max_tokens_per_forward=tokens)
        if sum(estimate_bytes(ref, smaller, adapters=adapters).values()) <= available:
            return tokens
        tokens //= 2
    return None


def _is_trl(config: TrainConfig) -> bool:
    """True if TRL takes the steps of RL. It runs whole groups, padded, and ignores the limit of tokens."""
    return config.backend == "trl" and not config.is_sft_alone


def estimate_bytes(
    ref: ModelRef, config: TrainConfig, *, trains: bool = True, adapters: int = 1
) -> dict[str, int]:
    """Bytes that training takes at least, by purpose.

    Args:
        ref: the base model.
        config: the settings.
        trains: gradients, moments and activations are kept; False to sample only.
        adapters: number of adapters, one for each seed.

    Weights are counted with the engine's copies of them, keys and values for one full-length answer, and
    activations for one forward and backward pass. Of TRL, that is a group without its prompt; vLLM is counted
    as if it ran on the CPU, with its whole KV cache.

    Raises:
        ModelError: a weights file is damaged.
    """
    shapes = tensor_shapes(ref.path)
    itemsize = 2 if config.dtype == "bfloat16" else 4
    linears, embeddings = [*_linears(shapes).values()], _embeddings(shapes)
    vocabulary = max((shape[0] for shape in embeddings), default=0)
    head = max(map(math.prod, embeddings), default=0)
    stored, in_vllm = itemsize * sum(map(math.prod, shapes.values())), config.engine == "vllm"
    copied = (stored if in_vllm else itemsize * sum(map(math.prod, linears))) + 4 * head
    adapter = trained_weights(ref, config)
    # In float32: weights and the engine's copy; in training, gradients and two moments; with several updates
    # a step, another copy of weights and moments, to undo the step.
    copies = 2 + (3 + 3 * (config.num_iterations > 1) if trains else 0)
    answer = config.max_completion_length
    rows = min(_MAX_ROWS, config.groups_per_step * config.num_generations)
    tokens = config.num_generations * answer * config.turns
    tokens = tokens if _is_trl(config) else min(tokens_per_forward(ref, config), tokens)
    cached = 2**20 * (config.kv_cache_mb or _least_vllm_cache_mb(ref, config)) if in_vllm else 0
    return {
        "weights": stored + copied,
        "adapter": adapters * copies * 4 * adapter,
        "KV cache": cached or _bytes_per_token(ref, config) * answer,
        "random numbers": 0 if in_vllm else 8 * rows * answer,
        "activations": trains * itemsize * _saved_per_token(ref) * tokens,
        "logits": trains * min(_LOGITS_BYTES, 3 * 4 * vocabulary * tokens),
    }


def _saved_per_token(ref: ModelRef) -> int:
    """Numbers that a forward pass saves for the backward pass, per packed token."""
    linears = _linears(tensor_shapes(ref.path)).values()
    hidden = min((shape[1] for shape in linears), default=0)
    wide = max((max(shape) for shape in linears), default=0)
    return (_SAVED_HIDDEN * hidden + _SAVED_WIDE * wide) * layer_count(ref.path)


def trained_weights(ref: ModelRef, config: TrainConfig) -> int:
    """Number of weights that an adapter has; 0 for a steering vector, which is too small to count.

    Raises:
        ModelError: a weights file is damaged.
    """
    layers = _linears(tensor_shapes(ref.path))
    attention = [shape for name, shape in layers.items() if "attn" in name or "attention" in name]
    every, some = (config.lora_r * sum(map(sum, each)) for each in (layers.values(), attention))
    full = sum(map(math.prod, layers.values()))
    numbers = {"steering": 0, FULL: full, "attention": some, "mlp": every - some}
    return numbers.get(config.control, every)


def _embeddings(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Shapes of the matrices of the vocabulary's size: the embedding, and the head if it has its own."""
    matrices = [shape for shape in shapes.values() if len(shape) == 2]
    vocabulary = max((shape[0] for shape in matrices), default=0)
    return [shape for shape in matrices if shape[0] == vocabulary]


def _linears(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes (out, in) of the linear layers without the head, by name: all other matrices."""
    others = _embeddings(shapes)
    return {name: shape for name, shape in shapes.items() if len(shape) == 2 and shape not in others}


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in a folder's safetensors files, by name.

    Raises:
        ModelError: a file is damaged.
    """
    return dict(entry for file in sorted(folder.glob("*.safetensors")) for entry in _shapes(file))


def layer_count(folder: Path) -> int:
    """Layers of a model by its ``config.json``; 0 if it does not say."""
    layers = _model_config(folder).get("num_hidden_layers")
    return layers if isinstance(layers, int) else 0


def _free_gpu_bytes() -> int | None:
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def _shapes(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a safetensors file's tensors, from its header."""
    try:
        with open_regular_file(file) as stream:
            header: object = json.loads(stream.read(min(int.from_bytes(stream.read(8), "little"), 10**8)))
        tensors = cast("dict[str, Any]", header)
        for name, tensor in tensors.items():
            if name != "__metadata__":
                yield name, tuple(map(int, tensor["shape"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file}: not a safetensors file ({type(error).__name__}: {error})") from error


def _model_config(folder: Path) -> dict[str, Any]:
    try:
        return read_json_object(folder / "config.json")
    except (OSError, ValueError):
        return {}


def _bytes_per_token(ref: ModelRef, config: TrainConfig) -> int:
    """Size of one token's keys and values."""
    return (2 if config.dtype == "bfloat16" else 4) * 2 * _attention_sizes(ref.path)


def _least_vllm_cache_mb(ref: ModelRef, config: TrainConfig) -> int:
    """Size of the smallest KV cache that vLLM accepts: it must hold a conversation of the model's context."""
    context = _model_config(ref.path).get("max_position_embeddings")
    tokens = (context if isinstance(context, int) else 0) + _VLLM_BLOCKS
    return math.ceil(_bytes_per_token(ref, config) * tokens / 2**20)


def _attention_sizes(folder: Path) -> int:
    """Size of one token's keys, in elements over all layers; 0 if the configuration does not say."""
    config = _model_config(folder)
    names = ("num_attention_heads", "hidden_size")
    if not all(isinstance(config.get(name), int) and config[name] > 0 for name in names):
        return 0
    heads, hidden = (config[name] for name in names)
    size, shared = config.get("head_dim"), config.get("num_key_value_heads")
    size = size if isinstance(size, int) and size > 0 else hidden // heads
    return layer_count(folder) * size * (shared if isinstance(shared, int) and shared > 0 else heads)


def _gb(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
