"""Budgets: the sizes of the studies."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from envkit.errors import ConfigError
from envkit.files import read_toml
from envkit.plain import decode
from envkit.studies.founding.arms import ARMS, Arm
from envkit.training.config import TrainConfig, from_mapping


@dataclass(frozen=True, slots=True)
class Budget:
    """Sizes that all cells of a grid share.

    Args:
        model: base of all arms.
        environment: the environment to train and measure on.
        split: tasks to measure on, ``"heldout"`` or ``"test"``.
        max_task_chars: longer tasks are left out, in training too.
        seeds: training seeds of each arm, from 0.
        tasks, samples: tasks that every arm is measured on, and episodes of each.
        many_tasks, many_samples: likewise for pass@k with a large k; the first of the same tasks.
        passages: passages of other text, and episodes for the divergence from the base.
        rows, ticks, rounds: rows that are decoded with many adapters, tokens of each, and how often.
        training: fields of `envkit.training.config.TrainConfig` for all arms.
        arms: arm -> further fields of it.
    """

    model: str
    environment: str
    split: str
    max_task_chars: int
    seeds: int
    tasks: int
    samples: int
    many_tasks: int
    many_samples: int
    passages: int
    rows: int = 64
    ticks: int = 16
    rounds: int = 3
    training: Mapping[str, object] = field(default_factory=dict[str, object])
    arms: Mapping[str, Mapping[str, object]] = field(default_factory=dict[str, Mapping[str, object]])

    def __post_init__(self) -> None:
        sizes = ("max_task_chars", "seeds", "tasks", "samples", "many_tasks", "many_samples", "passages")
        sizes += ("ticks", "rounds")
        for name in sizes:
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.rows < 2 or self.rows % 2:
            raise ConfigError(f"rows is {self.rows}; it must be even, as two rows share an adapter")
        if unknown := [name for name in self.arms if name not in ARMS]:
            raise ConfigError(f"there is no arm {unknown[0]!r}; the arms are: {', '.join(ARMS)}")

    def settings_of(self, arm: Arm) -> dict[str, object]:
        """Settings of an arm's training."""
        return {"model": self.model, **self.training, **arm.settings, **self.arms.get(arm.name, {})}

    def config_of(self, arm: Arm) -> TrainConfig:
        """Settings of an arm's training, checked.

        Raises:
            ConfigError: one is unknown or wrong; the message names the arm.
        """
        return from_mapping(self.settings_of(arm), f"arm {arm.name}")


def load_budget(name: str) -> Budget:
    """Read a budget that envkit ships, or a TOML file of one.

    Args:
        name: ``"smoke"``, ``"cpu"``, or a path.

    Raises:
        ConfigError: no such budget, or a field is missing or wrong.
    """
    text = resources.files("envkit.studies.founding").joinpath("budgets.toml").read_text("utf-8")
    shipped = tomllib.loads(text)
    if name not in shipped and not name.endswith(".toml"):
        raise ConfigError(f"there is no budget {name!r}; expected {', '.join(shipped)}, or a TOML file")
    return read_budget(shipped[name] if name in shipped else read_toml(Path(name)), name)


def read_budget(table: Mapping[str, object], where: str) -> Budget:
    """Make a budget of plain data.

    Args:
        table: its fields.
        where: name of the data in error messages.

    Raises:
        ConfigError: a field is missing or wrong.
    """
    try:
        return decode(Budget, table, where)
    except ValueError as error:
        raise ConfigError(str(error)) from error
