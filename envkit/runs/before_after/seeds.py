"""Before/after study with several seeds: one adapter per seed, on one base model, in one process.

The warm starts run one after another. In RL, the episodes of all seeds are sampled in one batch. The run
folder holds one run folder per seed, each with its own report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, cast, final

from envkit.env import Env
from envkit.errors import ConfigError, Stopped, StoreError
from envkit.rollout import EnvFactory, Rollouts
from envkit.runs.before_after.run import BeforeAfter
from envkit.runs.before_after.setup import RunSetup, start_part, with_openings
from envkit.runtime.display import Display, Named
from envkit.runtime.stop import ShouldStop, raise_if_stopped
from envkit.runtime.store import RunFolder
from envkit.sandbox import SandboxBackend
from envkit.training.config import TrainConfig
from envkit.training.grpo import GRPOTrainer
from envkit.training.learner.memory import training_memory_errors
from envkit.training.metrics import StepMetrics
from envkit.training.multi_seed import resume_seeds, train_seeds
from envkit.training.trackers import NamedTracker

#: ``kind`` in the manifest of such a run.
KIND: Final = "before-after-seeds"


def configurations(config: TrainConfig, seeds: Sequence[int]) -> list[TrainConfig]:
    """Return one training configuration per seed.

    Args:
        config: the settings; its own seed is replaced.
        seeds: two or more, distinct.

    Raises:
        ConfigError: a seed is out of range, or the backend trains one adapter at a time.
    """
    if config.backend != "envkit":
        raise ConfigError(f"backend {config.backend!r} trains one adapter at a time; give one seed")
    return [replace(config, seed=seed) for seed in seeds]


def start(root: Path, study: RunSetup, seeds: Sequence[int]) -> RunFolder:
    """Create the run folder of a new study, with one run folder per seed inside.

    Args:
        study: tasks and plan; its sizes are for one seed.
        seeds: see `configurations`.

    Raises:
        ConfigError: see `configurations`.
    """
    study = with_openings(root, study)
    parts = [
        replace(study, plan=replace(study.plan, train=config))
        for config in configurations(study.plan.train, seeds)
    ]
    kinds = [kind.id for kind in study.train]
    facts = {"kind": KIND, "environments": kinds, "seeds": [*seeds], **study.facts}
    with RunFolder.making(root, KIND, facts) as run:
        for part in parts:
            start_part(run, part)
    return run


@final
class MultiSeedStudy:
    """Runs the study, or continues one that was interrupted.

    Args:
        run: a folder made by `start`.
        kinds: the environments that the run began with.
        backend: sandbox backend.
        display: live view.
        should_stop: polled between short units of work; if it returns True, the run ends cleanly and writes
            its reports.
        trackers: experiment trackers; each seed is a tracked run of its own, in one group.

    Raises:
        StoreError: see `envkit.runs.before_after.run.BeforeAfter`.
    """

    def __init__(
        self,
        run: RunFolder,
        kinds: Sequence[type[Env]],
        backend: SandboxBackend,
        display: Display,
        should_stop: ShouldStop,
        trackers: Sequence[NamedTracker] = (),
    ) -> None:
        if (found := run.manifest.get("kind")) != KIND:
            raise StoreError(f"{run.path} is a run of kind {found!r}; expected {KIND!r}")
        self._run, self._display, self._should_stop = run, display, should_stop
        self._studies: list[BeforeAfter] = []
        run.require_unedited()
        if not isinstance(found := run.manifest.get("seeds"), list):
            raise StoreError(f"{run.path / 'manifest.json'}: damaged: seeds is {found!r}; expected a list")
        for seed in cast("list[int]", found):
            part = RunFolder.open(run.path / f"seed-{seed}")
            first = self._studies[0] if self._studies else None
            shown = Named(f"seed {seed}", display)
            self._studies.append(
                BeforeAfter(part, kinds, backend, shown, should_stop, sibling_of=first, trackers=trackers)
            )

    def run(self) -> list[Path]:
        """Run all phases that are not finished; returns the paths of the HTML reports, in the order of seeds.

        Raises:
            StoreError: another process is writing to the run folder.
            ModelError: there is too little memory.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._run.locked())
            stack.enter_context(contextlib.closing(self._studies[0].policy))
            for study in self._studies:
                stack.enter_context(study.tracked())
            stack.enter_context(training_memory_errors(self._studies[0].config))
            complete = True
            try:
                self._begin()
                self._train_rl()
                for study in self._studies:
                    study.finish()
            except Stopped:
                complete = False
            pages = [page for study in self._studies for page in study.report(complete=complete)]
            for study in self._studies if complete else ():
                study.claim()
            return pages

    def _begin(self) -> None:
        first, *others = self._studies
        first.begin()
        for other in others:
            other.copy_shared_results(first)
        for other in others:
            other.begin()

    def _train_rl(self) -> None:
        factories: dict[str, EnvFactory] = {}
        for study in self._studies:
            factories |= study.env_factories()
        trainers: list[GRPOTrainer] = []

        def at_once() -> int:
            return sum(not trainer.is_done() for trainer in trainers)

        with contextlib.ExitStack() as stack:
            rollouts = stack.enter_context(Rollouts(factories, should_stop=self._should_stop))
            callbacks: list[Callable[[StepMetrics], bool]] = []
            for study in self._studies:
                trainer, on_step = stack.enter_context(study.training(rollouts, at_once))
                assert isinstance(trainer, GRPOTrainer)  # `start` allows no other backend
                trainers.append(trainer)
                callbacks.append(on_step)
            resume_seeds(trainers)
            if not all(trainer.is_done() for trainer in trainers):
                steps = trainers[0].collector.config.max_steps
                self._display.phase(f"reinforcement learning, {len(trainers)} seeds", steps)
                train_seeds(trainers, lambda number, metrics: callbacks[number](metrics))
            if not all(trainer.is_done() for trainer in trainers):
                raise_if_stopped(self._should_stop)
