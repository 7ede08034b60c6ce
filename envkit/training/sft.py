"""The warm start: supervised fine-tuning on known answers with TRL's SFTTrainer."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from envkit.engine.attention import context_length
from envkit.errors import MissingExtraError, ModelError
from envkit.stop import ShouldStop, never, raise_if_stopped
from envkit.training.config import TrainConfig
from envkit.training.demonstration import Demonstration
from envkit.training.policy import Policy

#: (step, loss) after every step.
OnStep = Callable[[int, float], None]


def train(
    policy: Policy,
    demonstrations: Sequence[Demonstration],
    config: TrainConfig,
    on_step: OnStep,
    should_stop: ShouldStop = never,
) -> int:
    """Train the policy on demonstrations, one pass over all of them.

    Args:
        policy: its adapter is trained in place.
        demonstrations: correct answers; the seed decides their order.
        config: the ``sft_*`` fields and the seed.
        on_step: called after every step.
        should_stop: polled after every micro-batch.

    Returns:
        The number of steps taken.

    Raises:
        Stopped: ``should_stop`` has become True; the adapter is half trained.
        ModelError: a demonstration is longer than the model's context.
        MissingExtraError: TRL is not installed.
    """
    try:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]
    except ImportError as error:
        raise MissingExtraError(error.name or "trl", "train") from error
    steps = len(demonstrations) // config.sft_batch_size
    if steps == 0:
        return 0

    class StepReporter(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                on_step(state.global_step, float(logs["loss"]))

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            raise_if_stopped(should_stop)

        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            raise_if_stopped(should_stop)

    # Micro-batches are as fast on a CPU as the whole batch, and take a quarter of the memory.
    micro = math.gcd(config.sft_batch_size, 4)
    rows = [_row(policy, demonstration) for demonstration in demonstrations]
    _require_fit(policy, rows)
    with (
        # TRL uses deprecated names of transformers' arguments.
        warnings.catch_warnings(action="ignore", category=FutureWarning),
        tempfile.TemporaryDirectory(prefix="envkit-sft-") as scratch,
    ):
        arguments = SFTConfig(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=config.sft_batch_size // micro,
            learning_rate=config.sft_learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=max(steps // 20, 1),
            max_grad_norm=config.max_grad_norm,
            weight_decay=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=config.seed,
            train_sampling_strategy="group_by_length",
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            bf16=False,
            use_cpu=policy.device.type == "cpu",
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
        )
        on_one_device(arguments)
        policy.model.set_attn_implementation("sdpa")
        try:
            trainer = SFTTrainer(
                model=policy.model,
                args=arguments,
                train_dataset=Dataset.from_list(rows),
                processing_class=policy.tokenizer,
                callbacks=[StepReporter()],
            )
            remove_printer(trainer)
            trainer.train()
        finally:
            policy.use_layout_attention()
    return int(trainer.state.global_step)


def _row(policy: Policy, demonstration: Demonstration) -> dict[str, list[int]]:
    """Token ids and labels of a demonstration; only the answer's tokens have a loss."""
    prompt = policy.renderer.first(demonstration.system, demonstration.observation)
    answer = policy.renderer.answer(demonstration.answer)
    return {"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + list(answer)}


def _require_fit(policy: Policy, rows: Sequence[dict[str, list[int]]]) -> None:
    """Refuse demonstrations that the model cannot read whole.

    Raises:
        ModelError: the longest exceeds the model's context.
    """
    limit, longest = context_length(policy.model.config), max(len(row["input_ids"]) for row in rows)
    if longest > limit:
        raise ModelError(
            f"a demonstration has {longest} tokens, but the context of {policy.ref.id} has {limit}; use a "
            "model with a longer context"
        )


def on_one_device(arguments: Any) -> None:
    """Restrict a trainer to one GPU: TRL refuses to start if it sees several."""
    arguments._n_gpu = min(arguments.n_gpu, 1)


def remove_printer(trainer: Any) -> None:
    """Remove the callback that prints a dict per step; envkit's progress display shows the same."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
