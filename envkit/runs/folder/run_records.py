"""Typed contents of a run folder: the facts of its manifest, and the records of its journals.

Episodes are in `envkit.runtime.store`. Damaged files raise `StoreError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from envkit.env.taskfile import read_tasks
from envkit.errors import StoreError, UsageError
from envkit.measure.report.data import Machine
from envkit.models.adapter_folder import recorded_base
from envkit.runtime.plain import decode
from envkit.runtime.store import RunFolder, folder_name
from envkit.types import EpisodeKey, Task

#: Limits for counts and seconds. Larger values mean that the file is damaged.
_MAX_COUNT: Final = 2**53
_MAX_SECONDS: Final = 1e12


def _require_seconds(value: float, name: str) -> None:
    if not 0 <= value <= _MAX_SECONDS:
        raise ValueError(f"{name} is {value}; expected seconds from 0 to {_MAX_SECONDS:g}")


def _require_count(value: int, name: str) -> None:
    if not 0 <= value <= _MAX_COUNT:
        raise ValueError(f"{name} is {value}; expected a whole number from 0 to 2**53")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The fields of a manifest that a report shows.

    Args:
        id: name of the run.
        command: the command line that began it.
        model, model_digest: id of the base model, and digest of its weights.
        machine: hardware.
        commit: version of envkit.
        left_out: reason -> number of tasks that a bench left out.
    """

    id: str
    command: str
    model: str
    model_digest: str
    machine: Machine
    commit: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])

    @staticmethod
    def of(run: RunFolder) -> RunFacts:
        """Read them from a run's manifest.

        Raises:
            StoreError: a field is missing or of the wrong type.
        """
        try:
            return decode(RunFacts, run.manifest, "manifest", ignore_unknown=True)
        except ValueError as error:
            file = run.path / "manifest.json"
            raise StoreError(f"{file}: {error}; it is damaged: restore it, or start a new run") from error


def training_run_of(adapter: Path) -> RunFolder | None:
    """Open the training run that an adapter lies in; ``None`` if it is in none.

    A run of another kind, such as `envkit study support`, has no plan of a training: it did not train the
    adapter.

    Raises:
        StoreError: see `envkit.runtime.store.RunFolder.open`.
    """
    run = RunFolder.holding(adapter)
    return run if run is not None and "plan" in run.manifest else None


def base_of(adapters: Sequence[Path]) -> str:
    """Return the base model of adapters, as their training runs name it.

    If none is in a run that names one, the folder of the first adapter does. Empty if that does not either.
    Whether an adapter fits is for `envkit.models.adapter_folder.require_fit` to say.

    Raises:
        UsageError: the runs name several.
        ModelError: the base was a folder that is not there, or of which only the name is known.
    """
    bases = sorted({_base_named_by_run(adapter) for adapter in adapters} - {""})
    if len(bases) > 1:
        raise UsageError(
            f"the adapters belong to several bases: {', '.join(bases)}; take those of one, or name it with "
            "--model if their weights are the same"
        )
    if bases:
        return bases[0]
    return recorded_base(adapters[0]) if adapters else ""


def _base_named_by_run(adapter: Path) -> str:
    """Base model of the run that trained an adapter; empty if that is unknown, or a folder that is gone."""
    run = training_run_of(adapter)
    name = "" if run is None else str(run.manifest["plan"].get("train", {}).get("model", ""))
    is_gone = Path(name).is_absolute() and not Path(name).is_dir()
    return "" if is_gone or name == "auto" else name


def environments_of(run: RunFolder) -> list[str]:
    """List the names of the environments that a run trains on."""
    manifest = run.manifest
    # Older runs have one environment. The oldest do not name it: it was the code editor.
    return [*manifest.get("environments", [manifest.get("environment", "code-editor")])]


def task_file(part: Path, name: str) -> Path:
    """File of the tasks ``"train"`` or ``"heldout"``, in the folder of a run or of an environment in it."""
    return part / "tasks" / f"{name}.jsonl"


def train_tasks_of(run: RunFolder) -> dict[str, list[Task]]:
    """Read the tasks that a run trains on: environment -> tasks. One whose file is gone is left out.

    Raises:
        TaskFileError: a file is damaged.
    """
    names = environments_of(run)
    files = {
        name: task_file(run.path if len(names) == 1 else run.path / folder_name(name), "train")
        for name in names
    }
    return {name: read_tasks(file) for name, file in files.items() if file.exists()}


def sources_learned(adapter: Path) -> frozenset[str]:
    """Collect the sources of the tasks that an adapter was trained on; none if its training run is unknown.

    They include those of the adapter that its RL began with. A run without its task file adds none.

    Raises:
        StoreError, TaskFileError: a run is damaged.
    """
    found: set[str] = set()
    seen: set[Path] = set()
    while (run := training_run_of(adapter)) is not None and run.path not in seen:
        seen.add(run.path)
        found.update(task.source for tasks in train_tasks_of(run).values() for task in tasks)
        began_with = run.manifest["plan"].get("train", {}).get("warm_start")
        if not began_with:
            break
        adapter = Path(began_with)
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """A record of ``phases.jsonl``: time, tokens and memory of a part of a phase.

    Args:
        tokens: tokens sampled.
        peak_memory_bytes: most memory that the run's process has had until then; 0 if unknown.
    """

    phase: str
    seconds: float
    tokens: int
    peak_memory_bytes: int = 0

    def __post_init__(self) -> None:
        _require_seconds(self.seconds, "seconds")
        _require_count(self.tokens, "tokens")
        _require_count(self.peak_memory_bytes, "peak_memory_bytes")


@dataclass(frozen=True, slots=True)
class EnvironmentPart:
    """The part of an RL step that one environment gave; see `envkit.training.metrics.EnvironmentMetrics`."""

    episodes: int
    reward: float
    mixed: float

    def __post_init__(self) -> None:
        _require_count(self.episodes, "episodes")
        if not math.isfinite(self.reward + self.mixed):
            raise ValueError(f"{self}: expected numbers for reward and mixed")


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """The part of a record of ``metrics.jsonl`` that the report shows.

    Args:
        phase: ``"sft"`` or ``"rl"``.
        step: counted from 1.
        reward, mixed, completion_tokens, rollout_s, raised, environments: of RL steps; see `StepMetrics`.
            Older runs have no ``environments``.
    """

    phase: str
    step: int
    loss: float
    reward: float = math.nan
    mixed: float = math.nan
    completion_tokens: int = 0
    rollout_s: float = math.nan
    raised: float = 0.0
    environments: Mapping[str, EnvironmentPart] = field(default_factory=dict[str, EnvironmentPart])

    def __post_init__(self) -> None:
        _require_count(self.step, "step")
        _require_count(self.completion_tokens, "completion_tokens")
        if self.phase not in ("sft", "rl"):
            raise ValueError(f"phase is {self.phase!r:.40}; expected 'sft' or 'rl'")
        if self.phase == "rl" and not (math.isfinite(self.reward + self.mixed) and self.rollout_s > 0):
            raise ValueError(f"{self}: expected numbers for reward, mixed and rollout_s, the last above 0")
        if not 0 <= self.raised <= 1:
            raise ValueError(f"raised is {self.raised}; expected a share from 0 to 1")


@dataclass(frozen=True, slots=True)
class EpisodeTime:
    """The part of an evaluation's record that is no part of the episode: its share of the wall time."""

    key: EpisodeKey
    seconds: float

    def __post_init__(self) -> None:
        _require_seconds(self.seconds, "seconds")
