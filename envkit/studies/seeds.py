"""The before/after study of several seeds at once: an adapter each, all on one base, in one process.

Warm starts come one after another; in RL the episodes of all seeds are one batch. Each seed has a run folder
of its own inside, with its report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, cast, final

from envkit.display import Display
from envkit.env import Env
from envkit.errors import ConfigError, Stopped, StoreError
from envkit.rollout import EnvFactory, Rollouts
from envkit.sandbox import SandboxBackend
from envkit.stop import ShouldStop, check
from envkit.store import RunFolder
from envkit.studies.before_after import BeforeAfter
from envkit.studies.study import Study, start_part
from envkit.training.config import TrainConfig
from envkit.training.grpo import GRPOTrainer
from envkit.training.metrics import StepMetrics
from envkit.training.multi_seed import resume_seeds, train_seeds

#: Kind of run that this is.
KIND: Final = "before-after-seeds"


def configurations(config: TrainConfig, seeds: Sequence[int]) -> list[TrainConfig]:
    """One for each seed.

    Args:
        config: of any seed.
        seeds: two or more, distinct.

    Raises:
        ConfigError: a seed is out of range, or the backend trains one adapter at a time.
    """
    if config.backend != "envkit":
        raise ConfigError(f"backend {config.backend!r} trains one adapter at a time; give one seed")
    return [replace(config, seed=seed) for seed in seeds]


def start(root: Path, study: Study, seeds: Sequence[int]) -> RunFolder:
    """Make the run folder of a new study, and one of each seed inside.

    Args:
        study: sized for one seed.
        seeds: see `configurations`.

    Raises:
        ConfigError: see `configurations`.
    """
    parts = [
        replace(study, plan=replace(study.plan, train=own)) for own in configurations(study.plan.train, seeds)
    ]
    kinds = [kind.id for kind in study.train]
    facts = {"kind": KIND, "environments": kinds, "seeds": [*seeds], **study.facts}
    with RunFolder.making(root, KIND, facts) as run:
        for part in parts:
            start_part(run, part)
    return run


@final
class MultiSeedStudy:
    """One run of the study.

    Args:
        run: a folder made by `start`.
        kinds: the environments that it began with.
        backend: sandbox backend.
        display: live view.
        should_stop: polled between short units of work; True ends the run cleanly with reports.

    Raises:
        StoreError: see `envkit.studies.before_after.BeforeAfter`.
    """

    def __init__(
        self,
        run: RunFolder,
        kinds: Sequence[type[Env]],
        backend: SandboxBackend,
        display: Display,
        should_stop: ShouldStop,
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
            self._studies.append(BeforeAfter(part, kinds, backend, display, should_stop, sibling_of=first))

    def run(self) -> list[Path]:
        """Do what is left to do; returns the paths of the HTML reports, seed by seed.

        Raises:
            StoreError: another process is at work in the run folder.
        """
        with self._run.locked(), contextlib.closing(self._studies[0].policy):
            whole = True
            try:
                self._begin()
                self._train_rl()
                for study in self._studies:
                    study.finish()
            except Stopped:
                whole = False
            return [page for study in self._studies for page in study.report(whole=whole)]

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

        with contextlib.ExitStack() as held:
            rollouts = held.enter_context(Rollouts(factories, should_stop=self._should_stop))
            callbacks: list[Callable[[StepMetrics], bool]] = []
            for study in self._studies:
                trainer, on_step = held.enter_context(study.training(rollouts, at_once))
                assert isinstance(trainer, GRPOTrainer)  # `start` allows no other backend
                trainers.append(trainer)
                callbacks.append(on_step)
            resume_seeds(trainers)
            if not all(trainer.is_done() for trainer in trainers):
                steps = trainers[0].collector.config.max_steps
                self._display.phase(f"reinforcement learning, {len(trainers)} seeds", steps)
                train_seeds(trainers, lambda number, metrics: callbacks[number](metrics))
            if not all(trainer.is_done() for trainer in trainers):
                check(self._should_stop)
