"""Compute a steering vector: the mean difference inside the base between solved and failed episodes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envkit.errors import ModelError, UsageError
from envkit.models import ModelRef
from envkit.runs.tools.support import KIND, ROW
from envkit.runtime.display import Display
from envkit.runtime.store import RunFolder
from envkit.training.checkpoint import save_adapter
from envkit.training.config import TrainConfig, from_manifest
from envkit.training.learner.memory import layer_count
from envkit.training.policy import Policy
from envkit.types import Outcome, Tokens, Trajectory


@dataclass(frozen=True, slots=True)
class Contrast:
    """Episodes of one task, some of which solved it.

    Args:
        solved, failed: at least one of each.
    """

    solved: tuple[Trajectory, ...]
    failed: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True)
class Steering:
    """Facts of a steering vector: its episodes, its layer and its length.

    Args:
        tasks: tasks with episodes of both outcomes.
        episodes: their number.
        layer: the layer whose output is shifted, from 1.
        layers: how many the base has.
        strength: the difference was multiplied by this.
        share: length of the shift, relative to the mean length of the layer's outputs, token by token.
    """

    tasks: int
    episodes: int
    layer: int
    layers: int
    strength: float
    share: float


def read_config(run: RunFolder) -> TrainConfig:
    """Read the settings of a run of `envkit study support` of an untouched base.

    Raises:
        UsageError: it is another run, or an adapter played it.
        StoreError: its manifest is damaged.
    """
    if (kind := run.manifest.get("kind")) != KIND:
        raise UsageError(
            f"{run.path} is a run of kind {kind!r}; expected one of `envkit study support`, which plays "
            "train tasks in groups"
        )
    settings: Any = run.manifest.get("train", {})
    config = from_manifest(settings, str(run.path / "manifest.json"))
    if config.warm_start:
        raise UsageError(f"{run.path} was played by an adapter; expected one of the untouched base")
    return config


def contrasts(run: RunFolder) -> list[Contrast]:
    """Read the tasks that were solved sometimes, with their episodes.

    Raises:
        UsageError: there are none.
    """
    by_task: dict[str, list[Trajectory]] = {}
    for episode in run.trajectories(f"eval-{ROW}"):
        if episode.outcome is not Outcome.VOID and episode.steps:
            by_task.setdefault(episode.key.task, []).append(episode)
    found = [
        Contrast(tuple(one for one in some if one.solved), tuple(one for one in some if not one.solved))
        for some in by_task.values()
    ]
    mixed = [each for each in found if each.solved and each.failed]
    if not mixed:
        raise UsageError(
            f"none of the {len(by_task)} tasks in {run.path} was solved sometimes and failed sometimes, so "
            "there is no difference to learn from"
        )
    return mixed


def count_sampled(run: RunFolder) -> int:
    """Count the tokens that a run sampled, of all tasks and turns."""
    turns = (step.turn for episode in run.trajectories(f"eval-{ROW}") for step in episode.steps)
    return sum(len(turn.tokens.completion_ids) for turn in turns if turn.tokens is not None)


def make_vector(
    ref: ModelRef,
    config: TrainConfig,
    tasks: Sequence[Contrast],
    sampled_tokens: int,
    output: Path,
    layer: int,
    strength: float,
    display: Display,
) -> Steering:
    """Compute a steering vector of one layer, and write it as an adapter (CAA, arXiv:2312.06681).

    Only the first turn of an episode is read. Each task counts alike, whatever its numbers of episodes, and
    is compared with itself, so that what makes a task easy is no part of the difference.

    Args:
        ref: the base.
        config: settings of the run; its dtype must be chosen.
        tasks: from `contrasts`.
        sampled_tokens: that the run sampled, as in `count_sampled`; kept with the adapter.
        output: the adapter's folder, which must not exist.
        layer: from 1; 0 is the middle one.
        strength: multiplies the difference.
        display: shows the progress.

    Raises:
        UsageError: the base has no such layer.
        ModelError: an episode has no tokens.
        StoreError: the folder exists or cannot be written.
    """
    count = layer_count(ref.path)
    number = layer or (count + 1) // 2
    if not 1 <= number <= count:
        raise UsageError(f"layer is {layer}, and {ref.id} has layers 1 to {count}")
    policy = Policy(
        ref,
        lora_r=1,
        lora_alpha=1,
        control="steering",
        dtype=config.dtype,
        device=config.device,
        kv_cache_mb=0,
    )
    vectors: list[Any] = [
        parameter
        for name, parameter in policy.model.named_parameters()
        if name.endswith("lora_B.default.bias")
    ]
    episodes = [one for task in tasks for one in (*task.solved, *task.failed)]
    display.phase("read episodes", len(episodes))
    means: dict[int, Tensor] = {}
    lengths: list[float] = []
    for read, episode in enumerate(episodes, 1):
        outputs_SD = _outputs(policy, episode, number)
        means[id(episode)] = outputs_SD.mean(dim=0)
        lengths.append(float(outputs_SD.square().sum(dim=-1).sqrt().mean()))
        display.advance(read, "")

    def mean_of(some: Sequence[Trajectory]) -> Tensor:
        return torch.stack([means[id(one)] for one in some]).mean(dim=0)

    difference = torch.stack([mean_of(task.solved) - mean_of(task.failed) for task in tasks]).mean(dim=0)
    if not difference.any():
        raise UsageError("the first turns of solved and failed episodes are equal: there is no difference")
    with torch.no_grad():
        vectors[number - 1].copy_(difference * strength)
    save_adapter(policy, output, {"sampled_tokens": sampled_tokens})
    share = float(difference.square().sum().sqrt()) * abs(strength) * len(lengths) / sum(lengths)
    return Steering(len(tasks), len(episodes), number, count, strength, share)


def _tokens(episode: Trajectory) -> Tokens:
    tokens = episode.steps[0].turn.tokens
    if tokens is None or not tokens.completion_ids:
        raise ModelError(f"an episode of task {episode.key.task} has no tokens; it was not sampled here")
    return tokens


@torch.no_grad()
def _outputs(policy: Policy, episode: Trajectory, layer: int) -> Tensor:
    """Outputs (tokens, width) of a layer of the base for what the first turn of an episode wrote."""
    tokens = _tokens(episode)
    ids = torch.tensor([[*tokens.prompt_ids, *tokens.completion_ids]], device=policy.device)
    kept: list[Tensor] = []
    with policy.model.disable_adapter(), ExitStack() as hooks:
        decoder: Any = policy.model.get_base_model().get_decoder()

        def keep(_: object, __: object, output: Any) -> None:
            first: Any = output[0]  # of a tuple, or of a batch of one
            kept.append(first.reshape(-1, first.shape[-1]))

        hooks.callback(decoder.layers[layer - 1].register_forward_hook(keep).remove)
        policy.model.set_attn_implementation("sdpa")
        decoder(input_ids=ids, use_cache=False)
    return kept[0][len(tokens.prompt_ids) :].float()
