"""Loss and gradient of one group of equal shape: envkit's packed batch beside TRL's padded one."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import tiny
import torch
from side_by_side import Ways
from train_shared import GROUP, NEW, shaken_policy, trl_trainer

from envkit.train.config import TrainConfig
from envkit.train.loss import StepSize, logprobs, policy_loss
from envkit.train.packing import Row, pack

PROMPT = 512


@contextlib.contextmanager
def learning() -> Generator[Ways]:
    """One gradient of each; refused where ours is further than TRL's from the exact one."""
    policy = shaken_policy()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(policy, "A prompt that no step reads.", Path(folder))
        prompt = tiny.prompt(PROMPT, seed=1)
        rows = [
            Row(tiny.prompt(NEW, seed=10 + row), (True,) * NEW, (-8.0,) * NEW, ((-1.0) ** row,) * NEW)
            for row in range(GROUP)
        ]
        size, settings, batch = StepSize(GROUP * NEW, GROUP), TrainConfig(), pack(prompt, rows)
        padded = {
            "prompt_ids": torch.tensor(prompt).repeat(GROUP, 1),
            "prompt_mask": torch.ones(GROUP, PROMPT, dtype=torch.long),
            "completion_ids": torch.tensor([row.ids for row in rows]),
            "completion_mask": torch.ones(GROUP, NEW, dtype=torch.long),
            "old_per_token_logps": torch.tensor([row.logprobs for row in rows]),
            "advantages": torch.tensor([row.advantages[0] for row in rows]),
            "num_items_in_batch": torch.tensor(GROUP * NEW),
        }

        def ours() -> list[torch.Tensor]:
            loss = policy_loss(logprobs(policy.model, batch, 1.0), batch, size, settings).total
            return gradients(loss, policy.model)

        def theirs() -> list[torch.Tensor]:
            return gradients(trainer._compute_loss(trainer.model, padded), trainer.model)

        exact = copy.deepcopy(trainer.model).float()
        wanted = torch.cat(gradients(trainer._compute_loss(exact, padded), exact))
        del exact
        apart = {
            way: float((torch.cat(found()) - wanted).norm() / wanted.norm())
            for way, found in (("envkit", ours), ("TRL", theirs))
        }
        print("gradients, distance from TRL's in float32:", apart)
        # In bfloat16 both are mostly rounding, of which one batch is a noisy measure.
        if apart["envkit"] > max(1e-4, 1.1 * apart["TRL"]):
            raise SystemExit("another gradient is not a faster one")
        yield {"envkit": ours, "TRL": theirs}


def gradients(loss: torch.Tensor, model: Any) -> list[torch.Tensor]:
    """Of the adapter's parameters, each as a row."""
    loss.backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return found
