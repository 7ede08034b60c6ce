"""The TRL backend: TRL's GRPOTrainer takes the optimizer steps, on episodes that envkit plays.

Use it for TRL's tools. It is slower than `envkit.training.grpo` on one machine, because it runs the prompt
through the model once per episode instead of once per group.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from envkit.engine.protocol import seeds
from envkit.errors import TrainingError
from envkit.runtime.stop import raise_if_stopped
from envkit.training.config import TrainConfig
from envkit.training.groups import TrainingGroup, training_groups
from envkit.training.grpo import OnStep, Trainer, require_finite
from envkit.training.learner.heap import HeapLimit
from envkit.training.learner.loss import divergence
from envkit.training.learner.packing import TrainingRow
from envkit.training.metrics import StepMetrics, UpdateMetrics, step_metrics

#: Steps that TRL may take: no limit. `Trainer.finish_step` ends training, as `Trainer.last_step` may change.
_MAX_STEPS = 10**9


def settings(config: TrainConfig, folder: str) -> dict[str, Any]:
    """Translate the configuration into arguments of TRL's ``GRPOConfig``.

    One group at a time is in memory, and all groups of a step make one gradient. Curriculum, warm start and
    alarms have no counterpart in TRL and run outside of it.

    Args:
        config: envkit's configuration.
        folder: TRL's output folder; it stays empty unless TRL fails.
    """
    return {
        "output_dir": folder,
        "max_steps": _MAX_STEPS,
        "per_device_train_batch_size": config.num_generations,
        "gradient_accumulation_steps": config.groups_per_step,
        "num_generations": config.num_generations,
        "max_completion_length": config.max_completion_length * config.turns,
        "temperature": config.temperature,
        "loss_type": config.loss_type,
        "importance_sampling_level": config.importance_sampling_level,
        "epsilon": config.epsilon,
        "epsilon_high": config.epsilon_high,
        "beta": config.beta,
        "scale_rewards": "none",
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        # The model has its dtype already, and sampling does not use autocast.
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": config.device == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


@final
class TRLTrainer(Trainer):
    """Trains like `envkit.training.grpo.GRPOTrainer`, with TRL's optimizer steps."""

    def train(self, on_step: OnStep) -> None:
        if self.is_done():
            return
        with tempfile.TemporaryDirectory() as folder, _quiet():
            self._policy.model.set_attn_implementation("sdpa")
            try:
                self._trl_trainer(folder, on_step).train()
            except TrainingError as error:
                self.fail(str(error))
            except Exception:  # also `Stopped`, and too little memory
                self.drop_step()
                raise
            finally:
                self._policy.use_layout_attention()

    def _trl_trainer(self, folder: str, on_step: OnStep) -> Any:
        """Make a TRL trainer that plays episodes with envkit and ends when ``on_step`` returns False."""
        import trl
        from datasets import Dataset
        from transformers import TrainerCallback

        owner, library, collector, config, policy = self, trl, self.collector, self._config, self._policy
        base: Any = library.GRPOTrainer

        def metrics_of(trainer: Any, logs: Mapping[str, Any]) -> StepMetrics:
            update = UpdateMetrics(
                loss=float(logs["loss"]),
                grad_norm=float(logs["grad_norm"]),
                drift=trainer.drift / max(trainer.trained, 1.0),
                kl=trainer.kl / max(trainer.trained, 1.0),
                clipped=float(logs.get("clip_ratio/region_mean", logs.get("cispo_clip_ratio", 0.0))),
            )
            learn_s = time.monotonic() - trainer.began
            return step_metrics(self.step + 1, trainer.rollouts, trainer.groups, update, learn_s)

        class Hooked(base):
            """Plays episodes where TRL would sample, and adds up the metrics of its losses."""

            above: Any = base

            def _generate_and_score_completions(self, inputs: Any) -> dict[str, Tensor]:
                self.rollouts = collector.collect(owner.step)
                self.groups = training_groups(self.rollouts, config)
                self.began = time.monotonic()
                self.drift = self.kl = self.trained = 0.0
                size = config.num_generations
                rows = config.groups_per_step * size
                # These losses divide by the number of rows, padding rows included.
                per_row = config.loss_type in ("grpo", "dr_grpo")
                self.scale = rows / max(len(self.rollouts.valid()), 1) if per_row else 1.0
                # TRL shuffles the rows; a resumed run must shuffle like an uninterrupted one.
                torch.manual_seed(int(seeds((config.seed, owner.step)).generate_state(1)[0]))
                padded = _padded(self.groups, rows, policy.renderer.stop_id)
                batch = {name: part.to(policy.device) for name, part in padded.items()}
                if config.needs_reference:
                    with torch.no_grad(), policy.model.disable_adapter():
                        parts = [self._logprobs(part) for part in _groups(batch, size)]
                    batch["ref_per_token_logps"] = torch.cat(parts)
                return batch

            def _logprobs(self, part: Mapping[str, Tensor]) -> Tensor:
                ids = torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1)
                mask = torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1)
                width = part["completion_ids"].shape[1]
                outputs: Any = self._get_per_token_logps_and_entropies(self.model, ids, mask, width)
                return outputs[0]

            def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
                # No dropout, as while sampling. TRL reads the mode of the model itself, so that one stays.
                for part in self.model.children():
                    part.eval()
                outputs = self.above._get_per_token_logps_and_entropies(self, *args, **kwargs)
                self.new: Tensor = outputs[0].detach()
                return outputs

            def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
                raise_if_stopped(collector.rollouts.should_stop)
                loss = self.above._compute_loss(self, model, inputs)
                mask = inputs["completion_mask"] * inputs["tool_mask"]
                self.drift += float(((self.new - inputs["old_per_token_logps"]).abs() * mask).sum())
                self.trained += float(mask.sum())
                if config.needs_reference:
                    self.kl += float((divergence(self.new, inputs["ref_per_token_logps"]) * mask).sum())
                return loss * self.scale

        heap = HeapLimit()

        class Steps(TrainerCallback):
            """Refuses a step whose gradient is not finite; reports, logs and saves the others.

            A step without a gradient leaves the weights as they are: with one of zeros, the optimizer would
            move them by its momentum. ``max_kl`` alone gives none, as it only measures.
            """

            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                gradients = [p.grad for p in policy.trainable() if p.grad is not None]
                require_finite(float(torch.nn.utils.get_total_norm(gradients)), owner.step + 1)
                if not (config.beta > 0 or any(group.has_gradient for group in trainer.groups)):
                    for parameter in policy.trainable():
                        parameter.grad = None
                    return
                owner.begin_update()

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                if "grad_norm" in logs:  # the summary at the end has none
                    heap.after_step()
                    control.should_training_stop |= not owner.finish_step(metrics_of(trainer, logs), on_step)

        arguments = library.GRPOConfig(**settings(config, folder))
        on_one_device(arguments)
        start, slow = self.step, max(config.warmup_steps, 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: min((start + step + 1) / slow, 1.0)
        )
        trainer: Any = Hooked(
            model=policy.model,
            processing_class=policy.tokenizer,
            reward_funcs=_never,
            train_dataset=Dataset.from_list([{"prompt": ""}] * config.groups_per_step),
            args=arguments,
            optimizers=(self._optimizer, schedule),
            callbacks=[Steps()],
        )
        remove_printer(trainer)
        return trainer


def _padded(groups: Sequence[TrainingGroup], rows: int, pad_id: int) -> dict[str, Tensor]:
    """Pad all groups to TRL's layout: one row per episode, prompts padded left, completions padded right.

    TRL expects a fixed number of rows. Void episodes and missing groups become rows without a trained token.
    """
    flat = [(group.prompt, row) for group in groups for row in group.rows]
    if any(row.kept for _, row in flat):
        raise TrainingError("backend 'trl' cannot train conversations that branch; use backend 'envkit'")
    flat = flat or [((pad_id,), TrainingRow((pad_id,), (False,), (0.0,), (0.0,)))]
    prompts = [torch.tensor(prompt) for prompt, _ in flat]
    missing = rows - len(flat)

    def left(rows: Sequence[Tensor], fill: int) -> Tensor:
        return pad_sequence([row.flip(0) for row in rows], batch_first=True, padding_value=fill).flip(1)

    def right(rows: Sequence[Any], fill: float) -> Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)

    batch = {
        "prompt_ids": left(prompts, pad_id),
        "prompt_mask": left([torch.ones_like(prompt) for prompt in prompts], 0),
        "completion_ids": right([row.ids for _, row in flat], pad_id),
        "completion_mask": right([[1] * len(row.ids) for _, row in flat], 0),
        "tool_mask": right([[int(trained) for trained in row.trained] for _, row in flat], 0),
        "old_per_token_logps": right([row.logprobs for _, row in flat], 0.0),
        "advantages": right([row.advantages for _, row in flat], 0.0).float(),
    }
    if missing:
        for name, part in batch.items():
            padding = part[:1].expand(missing, -1)
            batch[name] = torch.cat([part, torch.zeros_like(padding) if "mask" in name else padding])
        batch["prompt_mask"][-missing:, -1] = 1  # a row must attend to something
    batch["num_items_in_batch"] = batch["tool_mask"].sum()
    return batch


def _groups(batch: Mapping[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    """Split the batch into parts of ``size`` rows, the unit of TRL's loss."""
    rows = {name: part for name, part in batch.items() if part.dim() > 1}
    for start in range(0, len(rows["prompt_ids"]), size):
        yield {name: part[start : start + size] for name, part in rows.items()}


def on_one_device(arguments: Any) -> None:
    """Restrict a trainer to one GPU: TRL refuses to start if it sees several."""
    arguments._n_gpu = min(arguments.n_gpu, 1)


def remove_printer(trainer: Any) -> None:
    """Remove the callback that prints a dict per step; envkit's progress display shows the same."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _never(**_: Any) -> list[float]:
    raise AssertionError("TRL asked for a reward; episodes carry their own")


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Silence warnings of TRL and transformers that do not apply here."""
    names = ("trl", "transformers", "accelerate")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
