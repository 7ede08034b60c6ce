"""Shared parts of the operations of `train.py`: sizes, dtype, policy, TRL's trainer and a reward."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import warnings
import zlib
from collections.abc import Generator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, TypeVar

import tiny
import torch
from side_by_side import Operation, Ways

from envkit.engine.torch_engine import TorchEngine
from envkit.models import SMALL_MODEL, ModelRef, resolve
from envkit.runs.folder.machine import cpu_dtype
from envkit.training.policy import Policy
from envkit.training.trl_backend import remove_printer

_T = TypeVar("_T")

ROUNDS: Final = max(int(os.environ.get("ROUNDS", "5")), 2)
#: Tokens per answer, and answers per group.
NEW, GROUP = 64, 16


#: The model of the operation that is being timed.
_MODEL: ContextVar[str] = ContextVar("model", default=SMALL_MODEL)


def timed_model() -> ModelRef:
    """Return the model of the operation that is being timed."""
    return resolve(_MODEL.get())


def on_model(name: str, operation: Operation) -> Operation:
    """Return an operation that is timed on a model of that id."""

    @contextlib.contextmanager
    def opened() -> Generator[Ways]:
        before = _MODEL.set(name)
        try:
            with operation() as ways:
                yield ways
        finally:
            _MODEL.reset(before)

    return opened


def trl_rows() -> int:
    """Return the rows of TRL's forward passes: all of a group, or as many as fit into 24 GB."""
    return GROUP if _MODEL.get() == SMALL_MODEL else GROUP // 4


@functools.cache
def dtype() -> str:
    """Return the dtype of the base weights: ``DTYPE`` if set, or the one that training would choose here."""
    return os.environ.get("DTYPE") or cpu_dtype()


def selected_operations(operations: Mapping[str, _T]) -> Mapping[str, _T]:
    """Return the operations that ``ONLY`` selects, and silence libraries' warnings.

    ``ONLY`` has beginnings of names, with commas between them.

    Raises:
        SystemExit: ``ONLY`` selects none.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    only = os.environ.get("ONLY", "")
    chosen = {name: each for name, each in operations.items() if name.startswith((*only.split(","),))}
    if not chosen:
        raise SystemExit(f"ONLY is {only!r}; operations are: {', '.join(operations)}")
    return chosen


def expect(found: int, wanted: int) -> None:
    """Exit if a way has sampled fewer or more tokens than expected."""
    if found != wanted:
        raise SystemExit(f"{found} tokens sampled, expected {wanted}")


def reward(text: str) -> float:
    """Return 1 for about half of all texts, by their checksum."""
    return float(zlib.crc32(text.encode()) & 1)


def perturbed_policy() -> Policy:
    """Return a policy whose adapter has random weights, and whose answers never end early."""
    policy = Policy(timed_model(), dtype=dtype())
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(torch.randn_like(parameter) * 1e-3)
    policy.engine = TorchEngine(tiny.plain(policy.ref, dtype()), [])
    return policy


def trl_trainer(policy: Policy, prompt: str, folder: Path) -> Any:
    """Return TRL's trainer with its fastest equivalent settings: no checkpointing, no reference model."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    library: Any = trl
    trainer: Any = library.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            policy.ref.path, dtype=getattr(torch, dtype()), attn_implementation="sdpa"
        ),
        processing_class=policy.tokenizer,
        reward_funcs=lambda completions, **_: [reward(text) for text in completions],
        train_dataset=Dataset.from_list([{"prompt": prompt}] * 64),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        args=library.GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=trl_rows(),
            gradient_accumulation_steps=GROUP // trl_rows(),
            num_generations=GROUP,
            max_completion_length=NEW,
            generation_kwargs={"min_new_tokens": NEW},
            loss_type="dapo",
            scale_rewards="none",
            beta=0.0,
            max_steps=1,
            learning_rate=1e-6,
            logging_steps=10**6,
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            seed=0,
        ),
    )
    # For losses that are called outside its loop: those of a step's parts then add up to the step's loss.
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
    remove_printer(trainer)
    set_peft_model_state_dict(trainer.model, get_peft_model_state_dict(policy.model))
    return trainer
