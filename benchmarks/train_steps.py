"""Whole steps of one and three turns with envkit's and TRL's trainer, on equal prompts and rewards."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator
from pathlib import Path

import tiny
import torch
from side_by_side import Ways
from train_shared import GROUP, NEW, ROUNDS, expect, perturbed_policy, reward, trl_trainer

from envkit.env import Env
from envkit.env.authored import ActionResult
from envkit.env.checks import check
from envkit.rollout import Rollouts
from envkit.runtime.store import Journal
from envkit.training.checkpoint import CheckpointStore
from envkit.training.config import TrainConfig
from envkit.training.grpo import GRPOTrainer
from envkit.training.policy import Policy
from envkit.training.rollouts import RolloutCollector
from envkit.types import Task

TURNS = 3


class Coin(Env):
    """Rewards the last answer by `reward`; earlier answers are followed by the task's ``between``."""

    id = "coin"

    def setup(self, task: Task) -> str:
        self._said = ""
        return task.prompt

    def apply(self, action: str) -> ActionResult:
        self._said = action
        return ActionResult(str(self.task.metadata["between"]))

    @check()
    def is_heads(self) -> bool:
        """True if the answer counts as right."""
        return bool(reward(self._said))


def envkit_trainer(
    policy: Policy, prompt: str, folder: Path, between: str = "", max_turns: int = 1
) -> GRPOTrainer:
    """Return envkit's trainer with one group per step."""
    tasks = [Task(str(number), "train", prompt, {}, {"between": between}) for number in range(ROUNDS + 8)]
    config = TrainConfig(
        max_steps=10**6,
        max_turns=max_turns,
        groups_per_step=1,
        num_generations=GROUP,
        max_completion_length=NEW,
        learning_rate=1e-6,
        save_steps=10**6,
    )
    rollouts = Rollouts(lambda: Coin(tasks=tasks, sandbox=tiny.MemoryBackend(), max_turns=max_turns))
    metrics, episodes = (Journal(folder / name) for name in ("metrics.jsonl", "episodes.jsonl"))
    store = CheckpointStore(folder / "checkpoints")
    return GRPOTrainer(RolloutCollector(policy, tasks, rollouts, config, episodes), metrics, store)


@contextlib.contextmanager
def step_ways() -> Generator[Ways]:
    """Run one single-turn step of each trainer."""
    policy = perturbed_policy()
    with tempfile.TemporaryDirectory() as ours_in, tempfile.TemporaryDirectory() as theirs_in:
        words = policy.tokenizer.decode(tiny.prompt(460, seed=3))
        trainer = trl_trainer(policy, words, Path(theirs_in))
        mine = envkit_trainer(policy, words, Path(ours_in))

        def ours() -> None:
            expect(
                mine.update(mine.backward(mine.collector.collect(mine.step))).completion_tokens, GROUP * NEW
            )

        def theirs() -> None:
            trainer.train()

        yield {"envkit": ours, "TRL": theirs}


@contextlib.contextmanager
def multi_turn_ways(turns: int = TURNS) -> Generator[Ways]:
    """Run one multi-turn step of each trainer; TRL's loop over tools is reproduced here."""
    policy = perturbed_policy()
    with tempfile.TemporaryDirectory() as ours_in, tempfile.TemporaryDirectory() as theirs_in:
        words = policy.tokenizer.decode(tiny.prompt(265, seed=4))
        between = policy.tokenizer.decode(tiny.prompt(45, seed=6))
        trainer = trl_trainer(policy, words, Path(theirs_in))
        mine = envkit_trainer(policy, words, Path(ours_in), between, turns)
        optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-6)
        prompt = torch.tensor(policy.renderer.first(Coin.system, words)).repeat(GROUP, 1)
        seen = torch.tensor(policy.renderer.following(between, closed=False)).repeat(GROUP, 1)

        def ours() -> None:
            expect(
                mine.update(mine.backward(mine.collector.collect(mine.step))).completion_tokens,
                turns * GROUP * NEW,
            )

        def theirs() -> None:
            ids, sampled = prompt, [torch.zeros_like(prompt)]
            for turn in range(turns):
                before = ids.shape[1]
                with torch.no_grad():
                    ids = trainer.model.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        generation_config=trainer.generation_config,
                    )
                sampled.append(torch.ones_like(ids[:, before:]))
                if turn < turns - 1:
                    ids = torch.cat([ids, seen], dim=1)
                    sampled.append(torch.zeros_like(seen))
            mask, start = torch.cat(sampled, dim=1), prompt.shape[1]
            expect(int(mask.sum()), turns * GROUP * NEW)
            texts = policy.tokenizer.batch_decode(ids[:, -NEW:])
            rewards = torch.tensor([reward(text) for text in texts])
            trainer._compute_loss(
                trainer.model,
                {
                    "prompt_ids": prompt,
                    "prompt_mask": torch.ones_like(prompt),
                    "completion_ids": ids[:, start:],
                    "completion_mask": torch.ones_like(ids[:, start:]),
                    "tool_mask": mask[:, start:],
                    "advantages": rewards - rewards.mean(),
                    "num_items_in_batch": mask.sum(),
                },
            ).backward()
            optimizer.step()
            optimizer.zero_grad()

        yield {"envkit": ours, "TRL": theirs}
