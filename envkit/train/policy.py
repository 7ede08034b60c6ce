"""The policy: a base model, one LoRA adapter to train, and an engine that samples from both."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, final

import torch

from envkit.engine.attention import register, require_plain
from envkit.engine.chat import ChatRenderer
from envkit.engine.lora import sharing, updates_of
from envkit.engine.protocol import AdapterEngine
from envkit.engine.torch_engine import TorchEngine
from envkit.engine.vllm_engine import VLLMEngine
from envkit.errors import MissingExtraError, ModelError
from envkit.models import ModelRef
from envkit.train.config import TrainConfig

#: File in an adapter's folder that names the weights it was trained on.
BASE = "base.json"


@final
class Policy:
    """Holds the weights. The learner trains ``model``'s adapter; the engine samples from the same base.

    Args:
        ref: the base model.
        lora_r, lora_alpha: see `envkit.train.config.TrainConfig`.
        dtype: of the base, ``"float32"`` or ``"bfloat16"``; the adapter is float32.
        device: where base and adapter are, ``"cpu"`` or ``"cuda"``.
        engine: who samples, ``"torch"`` or ``"vllm"``.
        seed: of the adapter's initial weights.

    Raises:
        ModelError: the folder does not load as a causal language model, or as one that is not plain (see
            `envkit.engine.attention.require_plain`), or torch finds no such device, or its memory is too
            small.
    """

    def __init__(
        self,
        ref: ModelRef,
        *,
        lora_r: int = 16,
        lora_alpha: int = 32,
        dtype: str = "float32",
        device: str = "cpu",
        engine: str = "torch",
        seed: int = 0,
    ) -> None:
        try:
            from safetensors import SafetensorError
            from transformers import AutoModelForCausalLM, AutoTokenizer
            from transformers.utils import logging
        except ImportError as error:
            raise MissingExtraError(error.name or "transformers", "train") from error
        self.ref, self.device = ref, _found(device)
        logging.disable_progress_bar()  # the display shows progress; this would break its lines
        try:
            base: Any = AutoModelForCausalLM.from_pretrained(ref.path, dtype=getattr(torch, dtype))
            self.tokenizer: Any = AutoTokenizer.from_pretrained(ref.path)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{ref.path}: not a causal language model ({str(error)[:200]})") from error
        require_plain(base)
        try:
            base.to(self.device)
        except torch.OutOfMemoryError as error:
            raise ModelError(f"{ref.id} does not fit into the memory of the card ({error})") from error
        self.renderer = ChatRenderer(self.tokenizer)
        stops = [self.renderer.stop_id]
        self.engine: AdapterEngine = (
            VLLMEngine(ref, stops, dtype=dtype, lora_r=lora_r)
            if engine == "vllm"
            else TorchEngine(base, stops, decode=self._decode)
        )
        self._base, self._lora = base, (lora_r, lora_alpha)
        self._begin(seed)

    @classmethod
    def of(cls, ref: ModelRef, config: TrainConfig) -> Policy:
        """A new policy, as a configuration whose dtype is chosen wants it."""
        return cls(
            ref,
            lora_r=config.lora_r,
            lora_alpha=config.lora_alpha,
            dtype=config.dtype,
            device=config.device,
            engine=config.engine,
            seed=config.seed,
        )

    def sibling(self, seed: int) -> Policy:
        """A policy with a new adapter of its own; base weights and engine are the same."""
        made = copy.copy(self)
        made._begin(seed)
        return made

    def _begin(self, seed: int) -> None:
        """Put a new adapter on the base."""
        from peft import LoraConfig, get_peft_model

        r, alpha = self._lora
        torch.manual_seed(seed)
        # all-linear: LoRA Without Regret (2025); never lm_head.
        config = LoraConfig(
            r=r, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        # PEFT reads a property of transformers' by a name that has been replaced.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            self.model: Any = get_peft_model(sharing(self._base), config)
        self.use_layout_attention()

    def add(self, adapter: Path, name: str) -> None:
        """Load a saved adapter beside the one in training, under a name of its own; see `serve`.

        Raises:
            ModelError: it is not one for this base.
        """
        _require_fit(adapter, self.ref)
        with warnings.catch_warnings(action="ignore", category=FutureWarning), _loading(adapter, self.ref):
            self.model.load_adapter(
                str(adapter), adapter_name=name, is_trainable=False, torch_device=str(self.device)
            )
        self._require_all_of(adapter, name)
        self.use_layout_attention()

    def serve(self, names: Sequence[str | None]) -> None:
        """Give the engine adapters that were added, numbered in this order; ``None`` is the base alone."""
        self.engine.load([{} if name is None else updates_of(self.model, name) for name in names])

    def _require_all_of(self, adapter: Path, name: str) -> None:
        """PEFT says nothing of weights that it finds no place for, as of a model with more layers.

        Raises:
            ModelError: there are any, or some are missing.
        """
        from peft import get_peft_model_state_dict as own_weights  # pyright: ignore[reportUnknownVariableType]
        from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

        with _loading(adapter, self.ref):
            saved: dict[str, Any] = load_file(adapter / "adapter_model.safetensors")
        own: dict[str, Any] = own_weights(self.model, adapter_name=name)
        if amiss := saved.keys() ^ own.keys():
            raise ModelError(
                f"{adapter}: not an adapter for {self.ref.id}: {min(amiss)} is in only one of them"
            )

    def use_layout_attention(self) -> None:
        """Switch the learner's model to packed attention (another trainer may have changed it)."""
        self.model.set_attn_implementation(register())
        # Never train mode: dropout would make the sampling policy another than the trained one.
        self.model.eval()

    def trainable(self) -> list[torch.nn.Parameter]:
        """The adapter's parameters, in a fixed order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids))

    def close(self) -> None:
        """End the engine; it samples no more."""
        self.engine.close()

    def sync(self, *siblings: Policy) -> None:
        """Give the engine the adapter as it is now, and behind it those of siblings."""
        self.engine.load([updates_of(policy.model, "default") for policy in (self, *siblings)])

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as a PEFT folder, with a note of the weights that it belongs to."""
        self.model.save_pretrained(folder, safe_serialization=True, selected_adapters=["default"])
        (folder / BASE).write_text(json.dumps({"model": self.ref.id, "digest": self.ref.digest}))


def _found(device: str) -> torch.device:
    """The device of that name.

    Raises:
        ModelError: torch finds none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"device is 'cuda', but torch {torch.__version__} finds no NVIDIA GPU; install a build of torch "
            "that fits the driver, or use device 'cpu'"
        )
    return torch.device(device)


@contextlib.contextmanager
def _loading(adapter: Path, ref: ModelRef) -> Generator[None]:
    """What PEFT and safetensors raise, as ours."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{adapter}: not an adapter for {ref.id} ({str(error)[:200]})") from error


def _require_fit(adapter: Path, ref: ModelRef) -> None:
    """Refuse an adapter of other weights, or one that is not a plain LoRA.

    The engine adds LoRA's update to the base and knows no other kind; it would sample from wrong weights.

    Raises:
        ModelError: it is one of them, or its settings cannot be read.
    """
    try:
        settings: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_bytes())
        note = adapter / BASE
        base: dict[str, str] = json.loads(note.read_bytes()) if note.exists() else {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{adapter}: not an adapter ({error}); expected a PEFT folder") from error
    plain = {
        "peft_type": "LORA",
        "use_dora": False,
        "bias": "none",
        "lora_bias": False,
        "modules_to_save": None,
        "trainable_token_indices": None,
    }
    for key, wanted in plain.items():
        if (found := settings.get(key, wanted)) != wanted and found:
            raise ModelError(f"{adapter}: {key} is {found!r}; expected {wanted!r}, a plain LoRA adapter")
    if base and base["digest"] != ref.digest:
        raise ModelError(
            f"{adapter} was trained on {base['model']} with weights {base['digest'][:12]}, and {ref.id} has "
            f"{ref.digest[:12]}; name its own base with --model"
        )
