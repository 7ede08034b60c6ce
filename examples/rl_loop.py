"""The whole training loop: pick tasks, play, compare within groups, take a gradient step.

`envkit train` adds evaluation, a warm start, a curriculum, checkpoints and a report.
"""

import torch

from envkit import ActionResult, Env, EpisodeKey, Rollouts, Task, check
from envkit.agents.local import LocalAgent
from envkit.engine.protocol import Sampling
from envkit.models import SMALL_MODEL, resolve
from envkit.sandbox.choice import sandbox_backend
from envkit.training.config import TrainConfig
from envkit.training.learner.advantages import turn_advantages
from envkit.training.learner.loss import StepSize, policy_loss
from envkit.training.learner.packing import pack, training_row
from envkit.training.policy import Policy

GROUPS, ROWS = 4, 8  # task visits per step, and episodes per visit


class FirstLetter(Env):
    """Answer with a word that begins with the asked letter."""

    id = "first-letter"

    @classmethod
    def make_tasks(cls, split, **_):
        return [Task(c, split, f"Write one word that begins with {c}.", {}) for c in "ABCDEFGHIJKLMNOP"]

    def setup(self, task):
        self.word = ""
        return task.prompt

    def apply(self, action):
        self.word = action.strip()
        return ActionResult("Noted.", done=True)

    @check()
    def begins_with_the_letter(self):
        return self.word.upper().startswith(self.task.id)


def main(steps=20):
    config = TrainConfig(dtype="float32", learning_rate=3e-4, max_completion_length=8)
    policy = Policy.of(resolve(SMALL_MODEL), config)
    optimizer = torch.optim.AdamW(policy.trainable(), lr=config.learning_rate, weight_decay=0.0)
    tasks, backend = FirstLetter.make_tasks("train"), sandbox_backend()
    sampling = Sampling(config.temperature, config.max_completion_length)
    rewards = []
    with Rollouts(lambda: FirstLetter(tasks=tasks, sandbox=backend)) as rollouts:
        for step in range(steps):
            # Pick: the episodes of a group see the same task and differ only in sampling.
            keys = [
                EpisodeKey(config.seed, step, group, row, tasks[(step * GROUPS + group) % len(tasks)].id)
                for group in range(GROUPS)
                for row in range(ROWS)
            ]
            # Play, with the weights as they are now.
            policy.sync()
            played = rollouts.play(LocalAgent("policy", policy.engine, policy.renderer, sampling), keys)
            # Learn: each episode against its group's mean, on the very tokens that were sampled.
            tokens = sum(len(each.steps[0].turn.tokens.completion_ids) for each in played)
            for start in range(0, len(played), ROWS):
                group = played[start : start + ROWS]
                advantages = turn_advantages([[step.reward for step in each.steps] for each in group])
                rows = [
                    training_row(episode, turns) for episode, turns in zip(group, advantages, strict=True)
                ]
                batch = pack(group[0].steps[0].turn.tokens.prompt_ids, rows)
                new = policy.logprobs(batch, config.temperature)
                policy_loss(new, batch, StepSize(tokens, len(played)), config).total.backward()
            optimizer.step()
            optimizer.zero_grad()
            rewards.append(sum(each.reward for each in played) / len(played))
            print(f"step {step + 1}: reward {rewards[-1]:.2f}")
    policy.close()
    return rewards


if __name__ == "__main__":
    main()
