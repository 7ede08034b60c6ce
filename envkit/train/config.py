"""Training configuration: few fields, TRL's names where TRL has one."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from envkit.errors import ConfigError
from envkit.models import DEFAULT_MODEL


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides a training run, apart from tasks and machine.

    Args:
        model: model id, folder or hub id.
        seed: root of every random draw.
        max_turns: actions per episode.
        lora_r: rank of the adapter on all linear layers.
        lora_alpha: the update is scaled by ``lora_alpha / lora_r``.
        sft_examples: oracle edits of train tasks to imitate first; 0 skips the warm start.
        sft_learning_rate: peak of a linear schedule.
        sft_batch_size: examples per step.
        curriculum_tasks: train tasks whose difficulty is estimated before RL, which then visits no others;
            0 makes no estimate and visits all.
        max_steps: policy-gradient steps.
        learning_rate: AdamW, constant after a short warm-up.
        warmup_steps: steps of linear warm-up.
        groups_per_step: task visits per step.
        num_generations: episodes per visit (G).
        temperature: of sampling in training, > 0.
        max_completion_length: tokens per turn.
        epsilon: clip range of the probability ratio.
        max_grad_norm: gradient norm is clipped to this.
        save_steps: steps between checkpoints.
        max_tokens_per_forward: a group larger than this is split over several forward passes.
    """

    model: str = DEFAULT_MODEL
    seed: int = 0
    max_turns: int = 1
    lora_r: int = 16
    lora_alpha: int = 32
    sft_examples: int = 720
    sft_learning_rate: float = 5e-4
    sft_batch_size: int = 12
    curriculum_tasks: int = 160
    max_steps: int = 40
    learning_rate: float = 2e-4
    warmup_steps: int = 2
    groups_per_step: int = 6
    num_generations: int = 16
    temperature: float = 1.0
    max_completion_length: int = 128
    epsilon: float = 0.2
    max_grad_norm: float = 1.0
    save_steps: int = 5
    max_tokens_per_forward: int = 2048

    def __post_init__(self) -> None:
        for field, least in _LEAST.items():
            if getattr(self, field) < least:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be at least {least}")
        if 0 < self.sft_examples < self.sft_batch_size:
            raise ConfigError(
                f"sft_examples is {self.sft_examples}; it must be 0 or at least sft_batch_size, "
                f"{self.sft_batch_size}"
            )
        if self.seed >= 2**32:  # numpy takes no more
            raise ConfigError(f"seed is {self.seed}; it must be less than 2**32")
        for field in ("learning_rate", "sft_learning_rate", "temperature", "epsilon", "max_grad_norm"):
            if not 0 < getattr(self, field) < float("inf"):
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be positive and finite")


_LEAST = {
    "seed": 0,
    "max_turns": 1,
    "lora_r": 1,
    "lora_alpha": 1,
    "sft_examples": 0,
    "sft_batch_size": 1,
    "curriculum_tasks": 0,
    "max_steps": 0,
    "warmup_steps": 0,
    "groups_per_step": 1,
    "num_generations": 2,
    "max_completion_length": 1,
    "save_steps": 1,
    "max_tokens_per_forward": 1,
}


def from_mapping(values: Mapping[str, Any], where: str) -> TrainConfig:
    """A configuration from plain values; ``where`` names their origin in errors.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range; names file and field.
    """
    hints = get_type_hints(TrainConfig)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}; expected one of: {', '.join(sorted(hints))}")
        wanted = hints[key]
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise ConfigError(f"{where}: {key} is {value!r}; expected {wanted.__name__}")
        checked[key] = value
    try:
        return TrainConfig(**checked)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def from_toml(path: Path) -> TrainConfig:
    """Read a TOML file of `TrainConfig` fields.

    Raises:
        ConfigError: no such file, not TOML, or see `from_mapping`.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from error
    return from_mapping(values, str(path))


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """Plain values that `from_mapping` takes back."""
    return dataclasses.asdict(config)
