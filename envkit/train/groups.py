"""What a step's episodes teach: by group, each turn beside the same turn of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from envkit.errors import ContractError
from envkit.train.advantages import turn_advantages
from envkit.train.packing import TrainingRow, training_row
from envkit.train.rollouts import StepRollouts
from envkit.types import Outcome, Trajectory, Verdict


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """One group to learn from.

    Args:
        prompt: ids that all its episodes began with.
        rows: what each of them added.
        mixed: whether their rewards differ, without shaping.
        has_gradient: whether they do with it; if not, none has a gradient but by ``beta``.
    """

    prompt: tuple[int, ...]
    rows: list[TrainingRow]
    mixed: bool
    has_gradient: bool


def training_groups(played: StepRollouts, shaping: Mapping[str, float]) -> list[TrainingGroup]:
    """Every group that has a valid episode, in order.

    Args:
        played: the episodes.
        shaping: see `TrainConfig.shaping`.

    Raises:
        ContractError: an environment began episodes of one group with different observations.
    """
    found: list[TrainingGroup] = []
    for group in played.groups:
        valid = [t for t in group if t.outcome is not Outcome.VOID]
        if not valid:
            continue
        advantages = turn_advantages([_rewards(t, shaping) for t in valid])
        prompts = {t.steps[0].turn.tokens.prompt_ids for t in valid if t.steps[0].turn.tokens}
        if len(prompts) > 1:
            raise ContractError(
                f"environment {valid[0].env} began one visit of task {valid[0].key.task} with different "
                "observations; what reset() shows must follow from task and seed"
            )
        rows = [training_row(t, row) for t, row in zip(valid, advantages, strict=True)]
        mixed = len({t.reward for t in valid}) > 1
        found.append(TrainingGroup(prompts.pop(), rows, mixed, any(any(row) for row in advantages)))
    return found


def _rewards(trajectory: Trajectory, shaping: Mapping[str, float]) -> list[float]:
    """An episode's rewards, turn by turn; what shapes them comes with the last, and not for a cheat."""
    *before, last = [step.reward for step in trajectory.steps]
    if trajectory.info.get("verdict") == Verdict.TAMPERED.value:
        return [*before, last]
    scores = trajectory.scores  # those of another environment lack the check
    return [*before, last + sum(weight * scores.get(name, 0.0) for name, weight in shaping.items())]
