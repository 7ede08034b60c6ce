"""A configuration that cannot fit into memory is refused before the model is loaded."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import tiny
import torch

from envkit.errors import ConfigError, ModelError
from envkit.models import ModelRef
from envkit.training.config import TrainConfig
from envkit.training.learner import heap, memory
from envkit.training.policy import Policy

CONFIG = TrainConfig(dtype="float32", max_tokens_per_forward=768)


def test_the_estimate_counts_weights_and_adapter(ref: ModelRef) -> None:
    policy = tiny.policy(ref)
    parts = memory.estimate_bytes(ref, dataclasses.replace(CONFIG, lora_r=4))
    trained = sum(parameter.numel() for parameter in policy.trainable())
    frozen = [parameter for parameter in policy.model.parameters() if not parameter.requires_grad]
    copied = sum(parameter.numel() for parameter in frozen if parameter.dim() == 2)  # by the engine
    assert parts["weights"] == 4 * (sum(parameter.numel() for parameter in frozen) + copied)
    assert parts["adapter"] == 5 * 4 * trained


@pytest.mark.parametrize("control", ["attention", "mlp", "full"])
def test_the_estimate_counts_the_layers_that_are_trained(ref: ModelRef, control: str) -> None:
    policy = Policy(ref, lora_r=4, lora_alpha=8, control=control)
    weights = sum(parameter.numel() for parameter in policy.trainable() if parameter.dim() == 2)
    config = dataclasses.replace(CONFIG, lora_r=4, control=control)
    assert memory.estimate_bytes(ref, config)["adapter"] == 5 * 4 * weights


def test_the_estimate_counts_seeds_and_the_state_before_several_updates(ref: ModelRef) -> None:
    one, config = memory.estimate_bytes(ref, CONFIG)["adapter"], dataclasses.replace(CONFIG, num_iterations=2)
    assert memory.estimate_bytes(ref, CONFIG, adapters=3)["adapter"] == 3 * one
    assert memory.estimate_bytes(ref, config)["adapter"] == 8 * one // 5


def test_an_adapter_that_is_only_loaded_needs_no_memory_for_training(
    ref: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = dataclasses.replace(CONFIG, max_tokens_per_forward=2**17, max_completion_length=4096)
    needed = memory.estimate_bytes(ref, long, trains=False)
    assert needed["activations"] == needed["logits"] == 0
    monkeypatch.setattr(memory, "available_bytes", lambda: sum(needed.values()))
    memory.require_memory(ref, long, trains=False)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1)
    with pytest.raises(ConfigError, match=r"^loading .* needs at least"):
        memory.require_memory(ref, long, trains=False)
    large = dataclasses.replace(CONFIG, lora_r=1024)
    with pytest.raises(ConfigError, match=r"^loading .* use a machine with more$"):
        memory.require_memory(ref, large, trains=False)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"lora_r": 1024}, "lower lora_r, which is 1024"),
        ({"max_completion_length": 2**17}, "lower max_completion_length, which is 131072"),
        (
            {"max_tokens_per_forward": 2**17, "max_completion_length": 4096},
            "it fits with max_tokens_per_forward = 512",
        ),
    ],
)
def test_a_too_large_configuration_is_refused_with_the_fields_to_lower(
    ref: ModelRef, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], advice: str
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**25)
    config = dataclasses.replace(CONFIG, **changes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=rf"needs at least .* GiB .*{advice}"):
        Policy.of(ref, config)


@pytest.mark.parametrize(
    ("layers", "hidden", "wide", "tokens"),
    [(24, 896, 4864, 768), (30, 576, 1536, 1280), (28, 1536, 8960, 768), (2, 64, 128, 2048)],
    ids=["Qwen2.5-Coder-0.5B", "SmolLM2-135M", "Qwen2.5-Coder-1.5B", "tiny"],
)
def test_a_smaller_model_reads_more_tokens_at_once(
    ref: ModelRef, monkeypatch: pytest.MonkeyPatch, layers: int, hidden: int, wide: int, tokens: int
) -> None:
    shapes = {"head": (50_000, hidden), "up": (wide, hidden), "down": (hidden, wide)}
    monkeypatch.setattr(memory, "tensor_shapes", lambda _: shapes)
    monkeypatch.setattr(memory, "layer_count", lambda _: layers)
    assert memory.tokens_per_forward(ref, TrainConfig()) == tokens
    assert memory.tokens_per_forward(ref, CONFIG) == 768, "what the settings say"


def test_the_message_proposes_sizes_that_fit(ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = sum(memory.estimate_bytes(ref, CONFIG).values())
    monkeypatch.setattr(memory, "available_bytes", lambda: needed - 1)
    half = CONFIG.max_tokens_per_forward // 2
    with pytest.raises(ConfigError, match=f"fits with max_tokens_per_forward = {half}, which"):
        memory.require_memory(ref, CONFIG)
    memory.require_memory(ref, dataclasses.replace(CONFIG, max_tokens_per_forward=half))


def test_the_cache_gets_half_of_what_training_leaves_free(
    ref: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed, found = sum(memory.estimate_bytes(ref, CONFIG).values()), list[int]()
    for left in (2**20, 2**30, 2**40):
        monkeypatch.setattr(memory, "available_bytes", lambda left=left: needed + left)
        found.append(memory.choose_cache_mb(ref, CONFIG))
    assert found == [256, 512, 4096]


def test_what_was_chosen_automatically_is_not_refused(ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = sum(memory.estimate_bytes(ref, CONFIG).values())
    monkeypatch.setattr(memory, "available_bytes", lambda: needed + 1)
    memory.require_memory(ref, dataclasses.replace(CONFIG, kv_cache_mb=memory.choose_cache_mb(ref, CONFIG)))


def test_vllm_is_counted_with_weights_of_its_own_and_its_whole_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = tiny.make(tmp_path, max_position_embeddings=2**20)
    own = sum(file.stat().st_size for file in ref.path.glob("*.safetensors"))
    config = dataclasses.replace(CONFIG, engine="vllm", kv_cache_mb=300)
    torch_parts, parts = memory.estimate_bytes(ref, CONFIG), memory.estimate_bytes(ref, config)
    assert parts["KV cache"] == 300 * 2**20
    assert parts["weights"] > 2 * own > torch_parts["weights"] - own
    least = 2 * 2 * 32 * 4 * 2**20  # keys and values of two layers, for the model's whole context
    automatic = dataclasses.replace(config, kv_cache_mb=0)
    assert memory.estimate_bytes(ref, automatic)["KV cache"] == pytest.approx(least, rel=1e-2)
    needed = sum(memory.estimate_bytes(ref, automatic).values())
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    chosen = memory.choose_cache_mb(ref, automatic)
    assert least < chosen * 2**20 < 1.01 * least
    memory.require_memory(ref, dataclasses.replace(automatic, kv_cache_mb=chosen))
    monkeypatch.setattr(memory, "available_bytes", lambda: needed // 2)
    with pytest.raises(ConfigError, match="lower kv_cache_mb, or use engine 'torch'"):
        memory.require_memory(ref, automatic)


@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_the_engine_gets_the_memory_that_is_set(
    ref: ModelRef, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    given = list[int]()
    for name in ("TorchEngine", "VLLMEngine"):
        monkeypatch.setattr(
            f"envkit.training.policy.{name}", lambda *_, kv_cache_bytes, **__: given.append(kv_cache_bytes)
        )
    Policy(ref, engine=engine, kv_cache_mb=300)
    assert given == [300 * 2**20]


def test_a_failed_allocation_names_the_settings_to_lower(
    ref: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*_: object) -> None:
        torch.empty(10**15)

    lower = r"max_tokens_per_forward, which is 768, or kv_cache_mb, which is 512"
    with (
        pytest.raises(ModelError, match=rf"out of memory \(.*can't allocate memory.*a lower {lower}"),
        memory.training_memory_errors(dataclasses.replace(CONFIG, kv_cache_mb=512)),
    ):
        allocate()
    trl = dataclasses.replace(CONFIG, backend="trl")
    with (
        pytest.raises(ModelError, match="lower num_generations, which is 8"),
        memory.training_memory_errors(trl),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="a bug"), memory.training_memory_errors(CONFIG):
        raise RuntimeError("a bug")
    monkeypatch.setattr("envkit.training.policy.Head", allocate)
    with pytest.raises(ModelError, match=r"tiny-llama does not fit into memory \(.*use a smaller model"):
        Policy(ref)


def test_of_trl_a_padded_group_is_counted_and_other_advice_is_given(
    ref: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, backend="trl", max_turns=2, max_completion_length=4096)
    parts, packed = (
        memory.estimate_bytes(ref, each) for each in (config, dataclasses.replace(config, backend="envkit"))
    )
    tokens = config.num_generations * 2 * 4096
    assert parts["activations"] * config.max_tokens_per_forward == packed["activations"] * tokens
    alone = dataclasses.replace(config, max_steps=0)
    assert memory.estimate_bytes(ref, alone) == packed, "the warm start is envkit's"
    monkeypatch.setattr(memory, "available_bytes", lambda: sum(parts.values()) - 1)
    advice = "lower num_generations, which is 8, or max_completion_length, which is 4096"
    with pytest.raises(ConfigError, match=advice) as found:
        memory.require_memory(ref, config)
    assert "max_tokens_per_forward" not in str(found.value)


def test_a_missing_gpu_is_reported_before_anything_is_chosen_for_it(ref: ModelRef) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(ModelError, match=r"device is .cuda., but torch .* finds no NVIDIA GPU"):
        Policy.of(ref, dataclasses.replace(CONFIG, device="cuda"))


def test_a_configuration_that_fits_is_accepted(ref: ModelRef) -> None:
    assert memory.available_bytes()
    memory.require_memory(ref, CONFIG)


def test_the_heap_is_trimmed_after_a_process_has_grown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes, trims = list[float](), list[float]()
    monkeypatch.setattr(heap, "release_freed_memory", lambda: trims.append(sizes[-1]))
    statm = tmp_path / "statm"
    monkeypatch.setattr(heap, "_STATM", statm)
    sizes.append(4.0)
    limit = heap.HeapLimit()
    for size in (2.0, 2.1, 2.2, 2.3, 3.5, 3.7, 3.8):
        sizes.append(size)
        statm.write_text(f"0 {int(size * 2**30) // os.sysconf('SC_PAGE_SIZE')} 0")
        limit.after_step()
    assert trims == [4.0, 2.3, 3.8]


def test_torch_holds_fewer_kernels_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7"})
    heap.limit_kernel_caches()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
    assert int(os.environ["LRU_CACHE_CAPACITY"]) < 1024
