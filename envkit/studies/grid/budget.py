"""Budgets: the sizes of the studies."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from envkit.errors import ConfigError
from envkit.runs.tools.prompt_sizes import PromptSizes
from envkit.runtime.files import read_toml
from envkit.runtime.plain import decode
from envkit.studies.grid.arms import ARMS, ENVIRONMENTS, Arm
from envkit.studies.grid.measurements import FRONTIER, MANY, SOLVE, environment_of
from envkit.training.config import TrainConfig, from_mapping

#: ``max_tokens_per_forward`` of all arms that name none.
_TOKENS_PER_FORWARD = 768


@dataclass(frozen=True, slots=True)
class SeveralSizes:
    """Sizes of the arms that are trained on some of `envkit.studies.grid.arms.ENVIRONMENTS`.

    Args:
        max_task_chars: longer tasks are left out, in training too.
        tasks, samples: held-out tasks of each environment, at most, and episodes of each.
        training: fields of `envkit.training.config.TrainConfig` for one environment. An arm with n
            environments takes the same number of steps, with n times the known answers and groups in each, so
            that it sees each environment as often as a specialist does.
    """

    max_task_chars: int
    tasks: int
    samples: int
    training: Mapping[str, object]

    def settings_of(self, arm: Arm) -> dict[str, object]:
        """Settings of an arm's training, without the model."""
        config = from_mapping(self.training, "several.training")
        sizes = ("sft_examples", "sft_batch_size", "groups_per_step")
        return {**self.training, **{name: len(arm.environments) * getattr(config, name) for name in sizes}}


@dataclass(frozen=True, slots=True)
class FrontierSizes:
    """Sizes of the study on tasks that other models have answered.

    Args:
        models: names of those models, as the benchmark's file has them.
        tasks: of the benchmark, at most; its first ones.
        limits: fields of `envkit.training.config.TrainConfig` that limit an episode.
    """

    models: tuple[str, ...]
    tasks: int
    limits: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """Episodes that a cell plays.

    Args:
        environment: of the tasks.
        split: of them, ``"heldout"`` or ``"test"``.
        max_task_chars: longer tasks are left out; ``None`` for none.
        tasks, samples: tasks, at most, and episodes of each.
        config: settings that limit an episode; its others are not used.
        temperature: of sampling.
        recorded: models whose answers came with the tasks; the environment's own tasks have none.
    """

    environment: str
    split: str
    max_task_chars: int | None
    tasks: int
    samples: int
    config: TrainConfig
    temperature: float = 0.7
    recorded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StudyBudget:
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
        several: sizes of the arms ``only-*``, ``joint*``, ``merged-*`` and ``routed``; ``None`` for none.
        frontier: sizes of the study on tasks that other models have answered; ``None`` for no such study.
        prompt: sizes of the search for a system message; ``None`` for no such arm.
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
    rounds: int = 6
    training: Mapping[str, object] = field(default_factory=dict[str, object])
    arms: Mapping[str, Mapping[str, object]] = field(default_factory=dict[str, Mapping[str, object]])
    several: SeveralSizes | None = None
    frontier: FrontierSizes | None = None
    prompt: PromptSizes | None = None

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
        """Settings of an arm's training.

        Raises:
            ConfigError: it is trained on one of several environments, and there are no sizes for that.
        """
        training = self._several.settings_of(arm) if arm.environments else self.training
        known: dict[str, object] = {}
        if arm.imitated:
            answers = from_mapping(training, "training").sft_examples
            known = {"sft_examples": arm.imitated * answers, "max_steps": 0}
        # Fixed, because the parts that a group is split into decide the bits.
        shared = {"model": self.model, "max_tokens_per_forward": _TOKENS_PER_FORWARD}
        return {**shared, **training, **known, **arm.settings, **self.arms.get(arm.name, {})}

    @property
    def prompt_sizes(self) -> PromptSizes:
        """Sizes of the search for a system message.

        Raises:
            ConfigError: there are none.
        """
        if self.prompt is None:
            raise ConfigError("the budget has no table 'prompt'; budgets.toml of envkit shows one")
        return self.prompt

    def max_task_chars_of(self, arm: Arm) -> int:
        """Longest task that an arm is trained on."""
        return self._several.max_task_chars if arm.environments else self.max_task_chars

    def play_of(self, part: str) -> EpisodePlan:
        """Episodes of a part of `envkit.studies.grid.measurements`.

        Raises:
            ConfigError: there are no sizes for them.
        """
        if part == FRONTIER:
            if (frontier := self.frontier) is None:
                raise ConfigError("the budget has no table 'frontier'; budgets.toml of envkit shows one")
            config = from_mapping(frontier.limits, "frontier.limits")
            return EpisodePlan(
                self.environment, "heldout", None, frontier.tasks, 1, config, 0.0, frontier.models
            )
        if (environment := environment_of(part)) is not None:
            own, several = environment == self.environment, self._several
            return EpisodePlan(
                environment,
                self.split if own else "heldout",
                several.max_task_chars,
                several.tasks,
                several.samples,
                from_mapping(several.training, "several.training"),
            )
        sizes = {SOLVE: (self.tasks, self.samples), MANY: (self.many_tasks, self.many_samples)}
        tasks, samples = sizes[part]
        config = from_mapping(self.training, "training")
        return EpisodePlan(self.environment, self.split, self.max_task_chars, tasks, samples, config)

    @property
    def _several(self) -> SeveralSizes:
        if self.several is None:
            raise ConfigError(
                f"the budget has no table 'several' for {', '.join(ENVIRONMENTS)}; budgets.toml of envkit "
                "shows one"
            )
        return self.several

    def config_of(self, arm: Arm) -> TrainConfig:
        """Settings of an arm's training, checked.

        Raises:
            ConfigError: one is unknown or wrong; the message names the arm.
        """
        return from_mapping(self.settings_of(arm), f"arm {arm.name}")


def load_budget(name: str) -> StudyBudget:
    """Read a budget that envkit ships, or a TOML file of one.

    Args:
        name: ``"smoke"``, ``"cpu"``, ``"gpu"``, or a path.

    Raises:
        ConfigError: no such budget, or a field is missing or wrong.
    """
    text = resources.files("envkit.studies.grid").joinpath("budgets.toml").read_text("utf-8")
    shipped = tomllib.loads(text)
    if name not in shipped and not name.endswith(".toml"):
        raise ConfigError(f"there is no budget {name!r}; expected {', '.join(shipped)}, or a TOML file")
    return read_budget(shipped[name] if name in shipped else read_toml(Path(name)), name)


def read_budget(table: Mapping[str, object], where: str) -> StudyBudget:
    """Make a budget of plain data.

    Args:
        table: its fields.
        where: name of the data in error messages.

    Raises:
        ConfigError: a field is missing or wrong.
    """
    try:
        return decode(StudyBudget, table, where)
    except ValueError as error:
        raise ConfigError(str(error)) from error
