"""Measurements of the grid's cells, as they are kept in files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from envkit.measure.report.data import Conditions, Machine, Row
from envkit.measure.stats import Interval
from envkit.studies.controls.table import Control
from envkit.studies.grid.arms import ENVIRONMENTS

#: What can be measured of a cell: episodes of held-out tasks; many of fewer tasks; episodes in one of several
#: environments; answers to tasks that other models have answered; how far it has moved from its base; and, of
#: the base alone, what it costs to decode with many adapters, and what others solve of the tasks that it
#: plays (`others_part`).
SOLVE: Final = "solve"
MANY: Final = "many"
ON: Final = MappingProxyType({name: f"on-{name}" for name in ENVIRONMENTS})
FRONTIER: Final = "frontier"
DISTANCE: Final = "distance"
MULTIPLEX: Final = "multiplex"
#: Those that are episodes of a cell.
PLAYED: Final = (SOLVE, MANY, FRONTIER, *ON.values())
_OTHERS: Final = "others"


def environment_of(part: str) -> str | None:
    """Return the environment of a part, if it is one of several."""
    return next((name for name, each in ON.items() if each == part), None)


def searched_message(system: str, seed: int) -> str:
    """Name a system message that was searched for, by seed and digest: seeds may find the same one."""
    return f"seed {seed}: {hashlib.sha256(system.encode()).hexdigest()}"


def others_part(part: str) -> str:
    """Return the name of the results of others, scripts and recorded models, on the tasks of a part."""
    return _OTHERS if part == SOLVE else f"{_OTHERS}-{part}"


def answered_part(part: str) -> str | None:
    """Return the part whose tasks the results of others are on; ``None`` for the name of other results."""
    return next((each for each in PLAYED if others_part(each) == part), None)


@dataclass(frozen=True, slots=True)
class Made:
    """Record of making a cell's adapter.

    Args:
        adapter: its folder, relative to the cell's.
        digest: of its weights.
        control: what it changes, and what that took.
        steps: gradient steps of RL that were taken; 0 for other ways.
        planned: steps that its settings ask for.
        commit: version of envkit.
        parts: digests of the adapters that it was merged of; of a warm start, that of the arm whose it is.
        settings: of the training, without the seed and what the machine chose.
    """

    adapter: str
    digest: str
    control: Control
    steps: int
    planned: int
    commit: str
    parts: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """A system message that was searched for.

    Args:
        system: the message.
        sampled_tokens: that the search took.
        commit: version of envkit.
    """

    system: str
    sampled_tokens: int
    commit: str


@dataclass(frozen=True, slots=True)
class Measured:
    """Episodes of a cell on held-out tasks.

    Args:
        row: the results, by task.
        conditions: under which they were measured.
        machine: hardware.
        commit: version of envkit.
    """

    row: Row
    conditions: Conditions
    machine: Machine
    commit: str


@dataclass(frozen=True, slots=True)
class Others:
    """Answers of others than the cells, to the tasks that these play.

    Args:
        rows: one for each baseline of the environment, a script without a model, and for each model whose
            answers came with the tasks; none if there are none.
        conditions: under which they were measured; ``None`` without rows.
        commit: version of envkit.
    """

    rows: tuple[Row, ...]
    conditions: Conditions | None
    commit: str


@dataclass(frozen=True, slots=True)
class Distance:
    """Distance of a cell's adapter from its base.

    Args:
        digest: of the adapter's weights.
        sources: files that the passages of other text stand in.
        rises: how much worse each passage is predicted than by the base, in nats per token.
        kl: divergence from the base, in nats per sampled token, on the cell's own episodes.
        commit: version of envkit.
    """

    digest: str
    sources: tuple[str, ...]
    rises: tuple[float, ...]
    kl: Interval
    commit: str

    def __post_init__(self) -> None:
        if not self.rises or len(self.sources) != len(self.rises):
            raise ValueError(
                f"{len(self.rises)} rises and {len(self.sources)} sources; expected one of each passage"
            )

    @property
    def rise(self) -> float:
        """Mean rise, in nats per token."""
        return sum(self.rises) / len(self.rises)


@dataclass(frozen=True, slots=True)
class RoutedTasks:
    """Answering arm of each held-out task of an environment, by a router.

    Args:
        arms: name of the arm by task.
        learned: train prompts that the router learned from.
        read_ms: median milliseconds to read a prompt.
        size_bytes: of the router's file.
        base_bytes: of the base's files of weights.
        unknown: share of the environment's prompts that go to the base, in 0..1, if a router has never seen
            that environment. Its train prompts, of sources that no router learned from.
        commit: version of envkit.
    """

    arms: Mapping[str, str]
    learned: int
    read_ms: float
    size_bytes: int
    base_bytes: int
    unknown: float
    commit: str


@dataclass(frozen=True, slots=True)
class Multiplexed:
    """Decoding with many random adapters on one base.

    Args:
        rank: of each adapter.
        rows: that were decoded.
        speeds: tokens per second of each round, by way; see `envkit.studies.multiplexing.measure`.
        difference: largest difference of log-probabilities between a row among many adapters and the same row
            alone, in float32.
        machine: hardware.
        commit: version of envkit.
    """

    rank: int
    rows: int
    speeds: Mapping[str, tuple[float, ...]]
    difference: float
    machine: Machine
    commit: str
