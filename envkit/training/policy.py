"""The policy: a base model, one adapter in training, and an engine that samples from both."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from envkit.engine.adapters.lora import copy_without_weights
from envkit.engine.adapters.updates import Update, read_adapter, updates_of
from envkit.engine.attention.layouts import register
from envkit.engine.chat import ChatRenderer
from envkit.engine.head import Head
from envkit.engine.protocol import AdapterEngine
from envkit.engine.torch_engine import TorchEngine
from envkit.engine.vllm.engine import VLLMEngine
from envkit.errors import ConfigError, ModelError
from envkit.models import ModelRef, model_errors
from envkit.models.adapter_folder import BASE, require_all_layers, require_fit, shape_difference
from envkit.training.config import TrainConfig
from envkit.training.learner.base_model import add_adapter, linears_of, load_base, without_false_alarms
from envkit.training.learner.logprobs import PrefilledPrompt, logprobs
from envkit.training.learner.memory import choose_cache_mb, memory_errors, require_memory
from envkit.training.learner.packing import PackedBatch


@final
class Policy:
    """Owns the weights. The trainer changes the adapter of ``model``; the engine samples from the same base.

    Args:
        ref: the base model.
        lora_r, lora_alpha, control: see `envkit.training.config.TrainConfig`.
        dtype: of the base, ``"float32"`` or ``"bfloat16"``. The adapter is always float32.
        device: of base and adapter, ``"cpu"`` or ``"cuda"``.
        engine: ``"torch"`` or ``"vllm"``.
        seed: of the adapter's initial weights.
        kv_cache_mb: memory of the engine for keys and values, in MB.

    Raises:
        ModelError: see `envkit.training.learner.base_model`; or torch finds no such device, or the model does
            not fit into its memory.
    """

    def __init__(
        self,
        ref: ModelRef,
        *,
        lora_r: int = 16,
        lora_alpha: int = 32,
        control: str = "all-linear",
        dtype: str = "float32",
        device: str = "cpu",
        engine: str = "torch",
        seed: int = 0,
        kv_cache_mb: int = 2048,
    ) -> None:
        self.ref, self.device = ref, find_device(device)
        base, self.tokenizer = load_base(ref, dtype)
        with model_errors(f"{ref.path}: the tokenizer cannot be used"):
            self.renderer = ChatRenderer(self.tokenizer)
        tokenizer = self.tokenizer

        def decode(ids: Sequence[int]) -> str:  # no method: the engine must not hold the policy in memory
            return str(tokenizer.decode(ids))

        stops, cache_bytes = [self.renderer.stop_id], kv_cache_mb * 2**20
        with memory_errors(f"{ref.id} does not fit into memory", "use a smaller model"):
            base.to(self.device)
            #: Shared by engine and learner.
            self.head = Head(base.get_output_embeddings())
            self._base, self._lora, self._control = base, (lora_r, lora_alpha), control
            self._add_adapter(seed)
            self.engine: AdapterEngine = (
                VLLMEngine(ref, stops, dtype=dtype, lora_r=lora_r, kv_cache_bytes=cache_bytes)
                if engine == "vllm"
                else TorchEngine(base, stops, decode=decode, head=self.head, kv_cache_bytes=cache_bytes)
            )

    @classmethod
    def of(cls, ref: ModelRef, config: TrainConfig, *, trains: bool = True) -> Policy:
        """Make a new policy from a configuration.

        Args:
            ref: the base model.
            config: the settings.
            trains: it will be trained, which takes more memory than sampling and reading.

        Raises:
            ConfigError: its dtype is ``"auto"``, or the model would not fit into this machine's memory; see
                `envkit.training.learner.memory`.
        """
        if config.dtype == "auto":
            raise ConfigError(
                "dtype is 'auto'; choose one first, with envkit.runs.folder.machine.resolve_dtype"
            )
        require_memory(ref, config, trains=trains)
        rank, alpha = config.lora_shape
        return cls(
            ref,
            lora_r=rank,
            lora_alpha=alpha,
            control=config.control,
            dtype=config.dtype,
            device=config.device,
            engine=config.engine,
            seed=config.seed,
            kv_cache_mb=config.kv_cache_mb or choose_cache_mb(ref, config, trains=trains),
        )

    def sibling(self, seed: int) -> Policy:
        """Make a policy with a new adapter on the same base, sampled by the same engine."""
        policy = copy.copy(self)
        policy._add_adapter(seed)
        return policy

    def _add_adapter(self, seed: int) -> None:
        self.model: Any = add_adapter(copy_without_weights(self._base), *self._lora, seed, self._control)
        self.use_layout_attention()

    def add(self, adapter: Path, name: str) -> None:
        """Load a saved adapter beside the one in training, under its own name.

        Raises:
            ModelError: it is damaged or does not fit this base.
        """
        require_fit(adapter, self.ref)
        with (
            without_false_alarms(),
            model_errors(f"{adapter}: not an adapter for {self.ref.id}"),
        ):
            self.model.load_adapter(
                str(adapter), adapter_name=name, is_trainable=False, torch_device=str(self.device)
            )
        self._require_same_tensors(adapter, name)
        self.use_layout_attention()

    def load_into_engine(self, adapters: Sequence[Path | None]) -> None:
        """Give the engine saved adapters, numbered in this order; ``None`` is the base alone.

        Raises:
            ModelError: one is damaged or does not fit this base.
        """
        updates: list[Mapping[str, Update]] = []
        for folder in adapters:
            if folder is None:
                updates.append({})
                continue
            require_fit(folder, self.ref)
            # The files come from anywhere.
            with model_errors(f"{folder}: not an adapter for {self.ref.id}"):
                updates.append(read_adapter(folder))
                require_all_layers(folder, linears_of(self._base), updates[-1])
        self.engine.load(updates)

    def _require_same_tensors(self, adapter: Path, name: str) -> None:
        """Refuse a file with missing or extra tensors, such as one for more layers. PEFT ignores them.

        Raises:
            ModelError: see above.
        """
        from peft import get_peft_model_state_dict  # pyright: ignore[reportUnknownVariableType]
        from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

        with without_false_alarms(), model_errors(f"{adapter}: not an adapter for {self.ref.id}"):
            saved: dict[str, Any] = load_file(adapter / "adapter_model.safetensors")
            loaded: dict[str, Any] = get_peft_model_state_dict(self.model, adapter_name=name)
        if difference := shape_difference(saved, loaded):
            raise ModelError(f"{adapter}: not an adapter for {self.ref.id}: {difference}")

    def use_layout_attention(self) -> None:
        """Switch the trained model to packed attention, which an added adapter or TRL's trainer changes."""
        self.model.set_attn_implementation(register())
        # Never train mode: with dropout, the trained policy would not be the one that sampled.
        self.model.eval()

    def trainable(self) -> list[torch.nn.Parameter]:
        """The adapter's parameters, in a fixed order; of a steering vector, its numbers and no matrix.

        All are float32.
        """
        return [
            parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and (self._control != "steering" or name.endswith(".bias"))
        ]

    def prefill(self, prompt: Sequence[int]) -> PrefilledPrompt:
        """Read a prompt that several batches share, with the adapter in training."""
        return PrefilledPrompt(self.model, torch.tensor([*prompt], device=self.device)[None])

    def logprobs(
        self, batch: PackedBatch, temperature: float, prompt: PrefilledPrompt | None = None
    ) -> Tensor:
        """Log-probabilities of a batch under the adapter in training; see `learner.logprobs`."""
        return logprobs(self.model, self.head, batch, temperature, prompt)

    def close(self) -> None:
        """Close the engine. It cannot sample afterwards."""
        self.engine.close()

    def sync(self, *siblings: Policy) -> None:
        """Give the engine the current adapter as number 0, and those of siblings after it."""
        self.engine.load([updates_of(policy.model, "default") for policy in (self, *siblings)])

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as a PEFT folder, with the digest of its base model and what it changes."""
        with without_false_alarms():
            self.model.save_pretrained(folder, safe_serialization=True, selected_adapters=["default"])
        facts = {"model": self.ref.id, "digest": self.ref.digest, "control": self._control}
        (folder / BASE).write_text(json.dumps(facts))


def find_device(device: str) -> torch.device:
    """Return the torch device of that name.

    Raises:
        ModelError: torch finds none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"device is 'cuda', but torch {torch.__version__} finds no NVIDIA GPU; install a build of torch "
            "that fits the driver, or use device 'cpu'"
        )
    return torch.device(device)
