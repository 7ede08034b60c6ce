"""The supervised warm start on known answers, with TRL's SFTTrainer."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from envkit.errors import MissingExtraError
from envkit.train.config import TrainConfig
from envkit.train.demonstration import Demonstration
from envkit.train.policy import Policy

#: (step, total steps, loss) after every step; returns False to stop early.
OnStep = Callable[[int, int, float], bool]


def train(policy: Policy, shown: Sequence[Demonstration], config: TrainConfig, on_step: OnStep) -> int:
    """Imitate answers, one pass over what is shown.

    Args:
        policy: its adapter is trained in place.
        shown: right answers; the seed decides their order.
        config: the ``sft_*`` fields and the seed.
        on_step: called after every step.

    Returns:
        Steps done.
    """
    try:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]
    except ImportError as error:
        raise MissingExtraError(error.name or "trl", "train") from error
    steps = len(shown) // config.sft_batch_size
    if steps == 0:
        return 0

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs and not on_step(state.global_step, steps, float(logs["loss"])):
                control.should_training_stop = True

    # Small pieces: as fast on a CPU as the whole batch at once, and a quarter of the memory.
    micro = math.gcd(config.sft_batch_size, 4)
    rows = [_row(policy, one) for one in shown]
    with (
        # TRL calls transformers' arguments by names that are to be replaced.
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
                callbacks=[Watch()],
            )
            remove_printer(trainer)
            trainer.train()
        finally:
            policy.use_layout_attention()
    return int(trainer.state.global_step)


def _row(policy: Policy, shown: Demonstration) -> dict[str, list[int]]:
    """One demonstration as token ids; only the answer's tokens carry a loss."""
    prompt = policy.renderer.first(shown.system, shown.observation)
    answer = policy.renderer.answer(shown.answer)
    return {"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + list(answer)}


def on_one_device(arguments: Any) -> None:
    """Keep a trainer to the policy's device: TRL refuses to begin where it sees several cards."""
    arguments._n_gpu = min(arguments.n_gpu, 1)


def remove_printer(trainer: Any) -> None:
    """The trainer prints a dict per step; the progress display shows the same, better."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
