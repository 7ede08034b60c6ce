"""A step of supervised fine-tuning: envkit's packed batch and TRL's SFTTrainer, with equal examples."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator
from typing import Any

import tiny
import torch
from side_by_side import Ways
from train_shared import dtype, perturbed_policy

from envkit.training import sft
from envkit.training.config import TrainConfig
from envkit.training.learner.memory import tokens_per_forward
from envkit.training.trl_backend import remove_printer

#: Examples of a step, and their tokens: what all prompts begin with, the rest of a prompt, and the answer.
EXAMPLES, SHARED, OWN, ANSWER = 12, 90, 130, 80
#: TRL's rows per forward pass: as fast on a CPU as all of them, with less memory.
MICRO = 4


@contextlib.contextmanager
def sft_ways() -> Generator[Ways]:
    """Take one optimizer step each, on the lengths of the code editor's tasks."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    policy = perturbed_policy()
    shared = tiny.prompt(SHARED, seed=1)
    examples = [
        tiny.example((*shared, *tiny.prompt(OWN, seed=2 * row)), tiny.prompt(ANSWER, seed=2 * row + 1))
        for row in range(1, EXAMPLES + 1)
    ]
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-6)
    max_tokens = tokens_per_forward(policy.ref, TrainConfig())
    rows = [
        {"input_ids": [*e.prompt, *e.row.ids], "labels": [-100] * len(e.prompt) + [*e.row.ids]}
        for e in examples
    ]
    library: Any = trl
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = library.SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(
                policy.ref.path, dtype=getattr(torch, dtype()), attn_implementation="sdpa"
            ),
            processing_class=policy.tokenizer,
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(
                r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            args=library.SFTConfig(
                output_dir=folder,
                max_steps=1,
                per_device_train_batch_size=MICRO,
                gradient_accumulation_steps=EXAMPLES // MICRO,
                learning_rate=1e-6,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataset_kwargs={"skip_prepare_dataset": True},
                max_length=None,
                bf16=False,
                use_cpu=True,
                gradient_checkpointing=False,
            ),
        )
        remove_printer(trainer)

        def ours() -> None:
            sft.backward(policy, examples, max_tokens)
            optimizer.step()
            optimizer.zero_grad()

        def theirs() -> None:
            trainer.train()

        yield {"envkit": ours, "TRL": theirs}
