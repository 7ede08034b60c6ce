"""Loss and gradient of one group: envkit's packed batch and TRL's padded one."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import tempfile
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import tiny
import torch
from side_by_side import Ways
from train_shared import GROUP, NEW, perturbed_policy, trl_rows, trl_trainer

from envkit.training.config import TrainConfig
from envkit.training.learner.loss import StepSize, policy_loss
from envkit.training.learner.packing import TrainingRow, pack

PROMPT = 512


@contextlib.contextmanager
def learner_ways(prompt_tokens: int = PROMPT, group: int = GROUP, *, checked: bool = True) -> Generator[Ways]:
    """Compute one gradient each; if ``checked``, compare both with TRL's in float32 first."""
    policy = perturbed_policy()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(policy, "A prompt that no step reads.", Path(folder))
        prompt = tiny.prompt(prompt_tokens, seed=1)
        unknown = [
            TrainingRow(tiny.prompt(NEW, seed=10 + row), (True,) * NEW, (0.0,) * NEW, ((-1.0) ** row,) * NEW)
            for row in range(group)
        ]
        with torch.no_grad():  # as sampled, because far from a ratio of 1 a few tokens outweigh all others
            sampled = policy.logprobs(pack(prompt, unknown), 1.0).split(NEW)
        rows = [
            dataclasses.replace(row, logprobs=tuple(logprobs.tolist()))
            for row, logprobs in zip(unknown, sampled, strict=True)
        ]
        size, settings, batch = StepSize(group * NEW, group), TrainConfig(), pack(prompt, rows)
        padded = {
            "prompt_ids": torch.tensor(prompt).repeat(group, 1),
            "prompt_mask": torch.ones(group, prompt_tokens, dtype=torch.long),
            "completion_ids": torch.tensor([row.ids for row in rows]),
            "completion_mask": torch.ones(group, NEW, dtype=torch.long),
            "old_per_token_logps": torch.tensor([row.logprobs for row in rows]),
            "advantages": torch.tensor([row.advantages[0] for row in rows]),
            "num_items_in_batch": torch.tensor(group * NEW),
        }

        def ours() -> list[torch.Tensor]:
            loss = policy_loss(policy.logprobs(batch, 1.0), batch, size, settings).total
            return gradients([loss], policy.model)

        def theirs() -> list[torch.Tensor]:
            parts = parts_of(padded, trl_rows())
            return gradients((trainer._compute_loss(trainer.model, part) for part in parts), trainer.model)

        if checked:
            require_gradient(trainer, padded, {"envkit": ours, "TRL": theirs})
        yield {"envkit": ours, "TRL": theirs}


def require_gradient(trainer: Any, padded: Mapping[str, torch.Tensor], ways: Ways) -> None:
    """Exit if envkit's gradient is further from TRL's in float32 than TRL's own gradient in the timed dtype.

    Raises:
        SystemExit: envkit's gradient is further away.
    """
    exact = copy.deepcopy(trainer.model).float()
    parts = parts_of(padded, max(trl_rows() // 4, 1))  # float32 takes twice the memory
    wanted = torch.cat(gradients((trainer._compute_loss(exact, part) for part in parts), exact))
    del exact
    found = {way: torch.cat(cast("list[torch.Tensor]", measure())) for way, measure in ways.items()}
    distances = {way: float((gradient - wanted).norm() / wanted.norm()) for way, gradient in found.items()}
    print("gradients, distance from TRL's in float32:", distances)
    # In bfloat16 both distances are mostly rounding, which one batch measures with noise.
    if distances["envkit"] > max(1e-4, 1.1 * distances["TRL"]):
        raise SystemExit("another gradient is not a faster one")


def parts_of(padded: Mapping[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    """Split a batch of TRL's into parts of ``size`` rows, whose losses divide by the tokens of all rows."""
    return [
        {name: value[rows] if value.ndim else value for name, value in padded.items()}
        for rows in torch.arange(len(padded["advantages"])).split(size)
    ]


def gradients(losses: Iterable[torch.Tensor], model: Any) -> list[torch.Tensor]:
    """Return the adapter's flattened gradients after all losses, with one graph in memory at a time."""
    for loss in losses:
        loss.backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return found
