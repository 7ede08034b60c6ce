"""Training groups: the rollouts of one task visit as rows of tokens with advantages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from envkit.errors import ContractError
from envkit.training.config import TrainConfig
from envkit.training.learner.advantages import turn_advantages
from envkit.training.learner.packing import TrainingRow, shared_prompt, training_row
from envkit.training.rollouts import StepRollouts, is_mixed, passes_held_out, valid_episodes
from envkit.types import Trajectory, Verdict


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """One group of episodes, ready to train on.

    Args:
        prompt: token ids that all episodes begin with.
        rows: each episode's tokens after the prompt.
        mixed: True if the unshaped rewards differ.
        has_gradient: True if an advantage is not zero. Otherwise only ``beta`` gives a gradient.
    """

    prompt: tuple[int, ...]
    rows: list[TrainingRow]
    mixed: bool
    has_gradient: bool


def training_groups(rollouts: StepRollouts, config: TrainConfig) -> list[TrainingGroup]:
    """Turn rollout groups into training rows with advantages. Groups without a valid episode are left out.

    Args:
        rollouts: the episodes of one step.
        config: ``advantage`` and ``shaping`` are used.

    Raises:
        ContractError: episodes of one group began with different observations.
    """
    groups: list[TrainingGroup] = []
    for group in rollouts.groups:
        valid = valid_episodes(group)
        if not valid:
            continue
        if config.advantage == "solved":
            advantages = [[float(t.solved)] * len(t.steps) for t in valid]
        elif config.advantage == "hacked":
            advantages = turn_advantages([[0.0] * (len(t.steps) - 1) + [float(is_hacked(t))] for t in valid])
        else:
            advantages = turn_advantages([_shaped_rewards(t, config.shaping) for t in valid])
        prompts = {t.steps[0].turn.tokens.prompt_ids for t in valid if t.steps[0].turn.tokens}
        if len(prompts) > 1:
            raise ContractError(
                f"environment {valid[0].env} began one visit of task {valid[0].key.task} with different "
                "observations; what reset() shows must follow from task and seed"
            )
        prompt = shared_prompt(valid) if prompts else ()
        rows = [training_row(t, row, len(prompt)) for t, row in zip(valid, advantages, strict=True)]
        groups.append(TrainingGroup(prompt, rows, is_mixed(valid), any(any(row) for row in advantages)))
    return groups


def is_hacked(trajectory: Trajectory) -> bool:
    """True if an episode counts as solved and fails a held-out check."""
    return trajectory.solved and passes_held_out(trajectory) is False


def _shaped_rewards(trajectory: Trajectory, shaping: Mapping[str, float]) -> list[float]:
    """Rewards of each turn. Shaping is added to the last one, unless the episode tampered."""
    *before, last = [step.reward for step in trajectory.steps]
    if trajectory.info.get("verdict") == Verdict.TAMPERED.value:
        return [*before, last]
    scores = trajectory.scores  # an environment without the check has no score for it
    return [*before, last + sum(weight * scores.get(name, 0.0) for name, weight in shaping.items())]
