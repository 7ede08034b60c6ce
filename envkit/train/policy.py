"""The policy: a base model, one LoRA adapter to train, and an engine that samples from both."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any, final

import torch

from envkit.engine.attention import register
from envkit.engine.chat import ChatRenderer
from envkit.engine.torch_engine import TorchEngine
from envkit.errors import MissingExtraError, ModelError
from envkit.models import ModelRef

#: File in an adapter's folder that names the weights it was trained on.
BASE = "base.json"


@final
class Policy:
    """Holds the weights. The learner trains ``model``; the engine samples from a merged copy.

    Everything is fp32 on a CPU, where it is as fast as bf16 on most machines, exact to merge and the
    same for sampling and learning.

    Args:
        ref: the base model.
        system: system message of every conversation.
        lora_r, lora_alpha: see `envkit.train.config.TrainConfig`.
        seed: of the adapter's initial weights.
        adapter: a saved adapter to start from, instead of a new one.

    Raises:
        ModelError: the folder does not load as a causal language model, or the adapter not on it.
    """

    def __init__(
        self,
        ref: ModelRef,
        *,
        system: str,
        lora_r: int = 16,
        lora_alpha: int = 32,
        seed: int = 0,
        adapter: Path | None = None,
    ) -> None:
        try:
            from peft import LoraConfig, PeftModel, get_peft_model
            from peft import get_peft_model_state_dict as own_weights  # pyright: ignore[reportUnknownVariableType]
            from safetensors import SafetensorError
            from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
            from transformers import AutoModelForCausalLM, AutoTokenizer
            from transformers.utils import logging
        except ImportError as error:
            raise MissingExtraError(error.name or "peft", "train") from error
        self.ref = ref
        if adapter is not None:
            _require_fit(adapter, ref)
        logging.disable_progress_bar()  # the display shows progress; this would break its lines
        try:
            base: Any = AutoModelForCausalLM.from_pretrained(ref.path, dtype=torch.float32)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(ref.path)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{ref.path}: not a causal language model ({str(error)[:200]})") from error
        self.renderer = ChatRenderer(self.tokenizer, system)
        self.engine = TorchEngine(copy.deepcopy(base), [self.renderer.stop_id])
        self._base = base
        # PEFT reads a property of transformers' by a name that has been replaced.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            if adapter is None:
                torch.manual_seed(seed)
                # all-linear: LoRA Without Regret (2025); never lm_head.
                config = LoraConfig(
                    r=lora_r,
                    lora_alpha=lora_alpha,
                    lora_dropout=0.0,
                    target_modules="all-linear",
                    task_type="CAUSAL_LM",
                )
                self.model: Any = get_peft_model(base, config)
            else:
                try:
                    self.model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
                    saved: dict[str, Any] = load_file(adapter / "adapter_model.safetensors")
                except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                    raise ModelError(
                        f"{adapter}: not an adapter for {ref.id} ({str(error)[:200]})"
                    ) from error
                # PEFT says nothing of weights that it finds no place for, as of a model with more layers.
                own: dict[str, Any] = own_weights(self.model)
                if amiss := saved.keys() ^ own.keys():
                    raise ModelError(
                        f"{adapter}: not an adapter for {ref.id}: {min(amiss)} is in only one of them"
                    )
        self.use_layout_attention()

    def use_layout_attention(self) -> None:
        """Switch the learner's model to packed attention (another trainer may have changed it)."""
        self.model.set_attn_implementation(register())
        # Never train mode: dropout would make the sampling policy another than the trained one.
        self.model.eval()

    def trainable(self) -> list[torch.nn.Parameter]:
        """The adapter's parameters, in a fixed order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def sync(self) -> None:
        """Give the engine the present weights."""
        self.engine.load(self.model, self._base)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as a PEFT folder, with a note of the weights that it belongs to."""
        self.model.save_pretrained(folder, safe_serialization=True)
        (folder / BASE).write_text(json.dumps({"model": self.ref.id, "digest": self.ref.digest}))


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
    plain = {"peft_type": "LORA", "use_dora": False, "bias": "none", "modules_to_save": None}
    for key, wanted in plain.items():
        if (found := settings.get(key, wanted)) != wanted and found:
            raise ModelError(f"{adapter}: {key} is {found!r}; expected {wanted!r}, a plain LoRA adapter")
    if base and base["digest"] != ref.digest:
        raise ModelError(
            f"{adapter} was trained on {base['model']} with weights {base['digest'][:12]}, and {ref.id} has "
            f"{ref.digest[:12]}; name its own base with --model"
        )
