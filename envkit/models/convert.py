"""Convert a GGUF file to a folder that transformers loads: safetensors, configuration, tokenizer."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, cast

from envkit.models.known import KnownModel


def convert(model: KnownModel, file: Path, made: Path) -> None:
    """Convert a model's file; PyTorch is imported only here.

    Args:
        model: says dtype, and whether head and embedding are one tensor.
        file: the GGUF file.
        made: an empty folder.
    """
    import torch
    import transformers

    lib = cast("Any", transformers)
    lib.utils.logging.disable_progress_bar()
    # dequantize=True: with packed weights, generation is some hundred times slower.
    quantization = lib.GgufConfig(gguf_file=file.name, dequantize=True)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of its own
        loaded = lib.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, quantization_config=quantization, dtype=torch.float32
        )
    if model.tied:
        loaded.get_input_embeddings().weight = loaded.get_output_embeddings().weight
        loaded.config.tie_word_embeddings = True
        loaded.tie_weights()
    loaded.to(getattr(torch, model.dtype)).save_pretrained(made)
    lib.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(made)
