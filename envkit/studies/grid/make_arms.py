"""Make the arms of the studies' grid: train, compute or merge an adapter, or search for a message."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envkit.errors import StoreError, UsageError

if TYPE_CHECKING:
    from envkit.runtime.display import Display
    from envkit.sandbox import SandboxBackend
    from envkit.studies.grid.arms import Arm
    from envkit.studies.grid.budget import StudyBudget
    from envkit.studies.grid.cells import CellFolder
    from envkit.studies.grid.grid import Grid


@dataclass(frozen=True, slots=True)
class ArmMaker:
    """Make the adapters and messages of a grid's cells.

    Args:
        grid: the cells of all arms.
        sizes: of the grid.
        sandbox: a backend or its registered name.
        display: live view.
    """

    grid: Grid
    sizes: StudyBudget
    sandbox: SandboxBackend | str
    display: Display

    def make(self, cell: CellFolder) -> signal.Signals | None:
        """Make a cell's adapter or message, unless it has one or needs none; returns what stopped it.

        Goes on with a run that was stopped.
        """
        from envkit.studies.grid.arms import PROMPTED

        if cell.arm.kind == PROMPTED and cell.prompt is None:
            return self._search_message(cell)
        if cell.arm.has_adapter and cell.made is None:
            return self._make_adapter(cell)
        return None

    def _make_adapter(self, cell: CellFolder) -> signal.Signals | None:
        from envkit.models import weights_digest
        from envkit.runs.folder.provenance import commit
        from envkit.studies.controls.setup import control_of
        from envkit.studies.grid.arms import COMPUTED, MERGED, TRAINED, WARM
        from envkit.studies.grid.measurements import Made
        from envkit.training.checkpoint import step_of

        make = {
            COMPUTED: self._compute,
            MERGED: self._merge,
            TRAINED: self._train,
            WARM: self._copy_warm_start,
        }[cell.arm.kind]
        adapter = make(cell)
        if isinstance(adapter, signal.Signals):
            return adapter
        cell.write_made(
            Made(
                str(adapter.resolve().relative_to(cell.path.resolve())),
                weights_digest(adapter),
                control_of(cell.name, adapter),
                step_of(adapter),
                self.sizes.config_of(cell.arm).max_steps if cell.arm.kind == TRAINED else 0,
                commit(),
                self.grid.parts(cell),
                settings_of(self.sizes, cell.arm),
            )
        )
        return None

    def _train(self, cell: CellFolder) -> Path | signal.Signals:
        """Train a cell's adapter.

        Raises:
            UsageError: its run was begun with other settings.
        """
        from envkit.runs.training import resume_train, train
        from envkit.runtime.store import RunFolder
        from envkit.studies.grid.grid import differing_settings
        from envkit.training.config import of_run, to_mapping

        folder = cell.work / "training"
        began = runs_of(folder)
        if began:
            run, settings = RunFolder.open(began[-1]), settings_of(self.sizes, cell.arm)
            theirs = _of_any_seed(to_mapping(of_run(run)))
            if settings["dtype"] == "auto":  # which has become a dtype of this machine's in the run
                theirs["dtype"] = "auto"
            if differing := differing_settings(theirs, settings):
                raise UsageError(
                    f"the run of {cell.name} was begun with {differing[0]}, and now it would be "
                    f"{differing[1]}; go on with the version that began it ({run.manifest.get('commit')}), "
                    f"or delete {run.path} to begin again"
                )
        result = (
            resume_train(began[-1], sandbox=self.sandbox, trackers=(), display=self.display)
            if began
            else train(
                cell.arm.environments or self.sizes.environment,
                config={**self.sizes.settings_of(cell.arm), "seed": cell.seed},
                max_task_chars=self.sizes.max_task_chars_of(cell.arm),
                evaluate=False,
                sandbox=self.sandbox,
                trackers=(),
                root=folder,
                display=self.display,
                command=f"envkit study: {cell.name}",
            )
        )
        return result.stopped_by or result.adapter

    def _copy_warm_start(self, cell: CellFolder) -> Path:
        """Copy what an arm's RL of the same seed began with.

        Raises:
            UsageError: it is not trained yet.
            StoreError: it is gone.
        """
        from envkit.studies.grid.arms import RL_ARM
        from envkit.training.checkpoint import copy_adapter

        trained = self.grid.cells(RL_ARM)[cell.seed]
        if adapter_of(trained) is None:
            raise UsageError(f"{trained.name} is not trained yet; run the study to train it")
        began = runs_of(trained.work / "training")[-1] / "sft"
        if not began.exists():
            raise StoreError(
                f"{began} is gone, which RL of {trained.name} began with; delete the folder {trained.path} "
                "to train and measure it again"
            )
        adapter = cell.work / "adapter"
        if adapter.exists():  # stopped before it was written down
            shutil.rmtree(adapter)
        cell.work.mkdir(parents=True, exist_ok=True)
        copy_adapter(began, adapter)
        return adapter

    def _compute(self, cell: CellFolder) -> Path | signal.Signals:
        """Compute a steering vector from what the base solves and fails."""
        from envkit.runs.tools.supporting import support
        from envkit.studies.steering.call import steer

        adapter = cell.work / "vector"
        if not adapter.exists():
            # A search that was stopped begins anew: it stops by what it finds, so it has no end to go on to.
            played = support(
                self.sizes.environment,
                config=self.sizes.settings_of(cell.arm),
                seed=cell.seed,
                max_task_chars=self.sizes.max_task_chars,
                sandbox=self.sandbox,
                root=cell.work / "training",
                display=self.display,
            )
            if played.stopped_by:
                return played.stopped_by
            steer(played.run, adapter, display=self.display)
        return adapter

    def _search_message(self, cell: CellFolder) -> signal.Signals | None:
        """Search for a cell's system message."""
        from envkit.runs.folder.provenance import commit
        from envkit.runs.tools.prompting import resume_prompt_search, search_prompt
        from envkit.studies.grid.measurements import SystemPrompt

        folder = cell.work / "search"
        began = runs_of(folder)
        result = (
            resume_prompt_search(began[-1], sandbox=self.sandbox, display=self.display)
            if began
            else search_prompt(
                self.sizes.environment,
                config=self.sizes.settings_of(cell.arm),
                **asdict(self.sizes.prompt_sizes),
                seed=cell.seed,
                max_task_chars=self.sizes.max_task_chars,
                sandbox=self.sandbox,
                root=folder,
                display=self.display,
                command=f"envkit study: {cell.name}",
            )
        )
        if result.found is None:
            return result.stopped_by
        cell.write_prompt(SystemPrompt(result.found.system, result.found.sampled_tokens, commit()))
        return None

    def _merge(self, cell: CellFolder) -> Path:
        """Merge the specialists of the same seed."""
        from envkit.models import resolve
        from envkit.training.merging import merge_adapters

        adapter = cell.work / "merged"
        if adapter.exists():  # stopped before it was written down
            shutil.rmtree(adapter)
        cell.work.mkdir(parents=True, exist_ok=True)
        parts = [*self._specialists(cell.seed).values()]
        base, method = resolve(self.sizes.model, self.display), cell.arm.merging
        merge_adapters(base, parts, adapter, method, seed=cell.seed)
        return adapter

    def _specialists(self, seed: int) -> dict[str, Path]:
        """Adapters of the specialists of a seed, by the environment that each was trained on.

        Raises:
            UsageError: one is not trained yet.
            StoreError: one is gone.
        """
        from envkit.studies.grid.arms import SPECIALISTS

        found: dict[str, Path] = {}
        for environment, arm in SPECIALISTS.items():
            cell = self.grid.cells(arm.name)[seed]
            if (adapter := adapter_of(cell)) is None:
                raise UsageError(f"{cell.name} is not trained yet; run the study to train it")
            found[environment] = adapter
        return found


def settings_of(sizes: StudyBudget, arm: Arm) -> dict[str, object]:
    """Settings that an arm's adapter is made with, whatever its seed and the machine."""
    from envkit.env import registry
    from envkit.runs.folder.turns import turns_of
    from envkit.training.config import to_mapping

    config = sizes.config_of(arm)
    kinds = [registry.environment(name) for name in arm.environments or (sizes.environment,)]
    settings = to_mapping(config) | {"max_turns": turns_of(kinds, config.max_turns)}
    if any(kind.harness is not None for kind in kinds):  # it has no known answers
        settings["sft_examples"] = 0
    return _of_any_seed(settings)


def _of_any_seed(settings: Mapping[str, object]) -> dict[str, object]:
    """Leave out what a cell's seed and the machine decide."""
    return {name: value for name, value in settings.items() if name not in ("seed", "kv_cache_mb")}


def runs_of(folder: Path) -> list[Path]:
    """Run folders that a stopped study has left, oldest first."""
    return sorted(path.parent for path in folder.glob("*/manifest.json"))


def adapter_of(cell: CellFolder) -> Path | None:
    """The folder of a cell's adapter; ``None`` if it has none.

    Raises:
        StoreError: it is gone.
    """
    made = cell.made
    if made is None:
        return None
    adapter = cell.path / made.adapter
    if not adapter.exists():
        raise StoreError(
            f"{adapter} is gone, and something of {cell.name} is not measured yet; delete the folder "
            f"{cell.path} to train and measure it again"
        )
    return adapter
