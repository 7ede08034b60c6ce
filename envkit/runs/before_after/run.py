"""Before/after study: evaluate base, SFT and SFT+RL on the same held-out tasks, then write a report.

Several environments train one adapter together. Every phase stores its result in the run folder before the
next begins. An interrupted run therefore continues: evaluations from the last batch, SFT and RL from their
last checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, final

from envkit.env import Env
from envkit.errors import EnvkitError, Stopped, StoreError
from envkit.measure.report.data import Origin, ReportData
from envkit.measure.report.summary import summarise_row
from envkit.measure.report.text import MANY_RAISED
from envkit.models import resolve, weights_digest
from envkit.rollout import EnvFactory, Rollouts
from envkit.runs.before_after.env_eval import MODEL_ROWS, EnvEval
from envkit.runs.before_after.plan import steps_in_time
from envkit.runs.before_after.setup import parts_of, reopen, share
from envkit.runs.before_after.warm_start import phase_tasks, run_warm_start
from envkit.runs.folder.claim import CLAIM, ClaimedHardware, ClaimedSampling, make_claim
from envkit.runs.folder.machine import use_threads
from envkit.runs.folder.provenance import training_code_digest
from envkit.runs.folder.run_records import PhaseTime
from envkit.runs.folder.timing import Stopwatch, phases, spent_on
from envkit.runtime.display import Display
from envkit.runtime.stop import ShouldStop, raise_if_stopped
from envkit.runtime.store import RunFolder
from envkit.sandbox import SandboxBackend
from envkit.training.checkpoint import CheckpointStore, load_adapter, save_adapter
from envkit.training.config import TrainConfig, to_mapping
from envkit.training.grpo import GRPOTrainer, Trainer
from envkit.training.learner.memory import training_memory_errors
from envkit.training.metrics import StepMetrics
from envkit.training.policy import Policy
from envkit.training.rollouts import RolloutCollector
from envkit.training.trackers import Log, NamedTracker, TrackedRun, open_trackers
from envkit.training.trl_backend import TRLTrainer
from envkit.types import Task

#: Name of RL in ``phases.jsonl``.
_RL: Final = "reinforcement learning"


@final
class BeforeAfter:
    """Runs the study, or continues one that was interrupted.

    Args:
        run: a folder made by `envkit.runs.before_after.setup.start`.
        kinds: the environments that the run began with.
        backend: sandbox backend.
        display: live view.
        should_stop: polled between short units of work; if it returns True, the run ends cleanly and writes
            its report.
        sibling_of: another seed's run, whose base model and engine are shared.
        trackers: experiment trackers that the run is logged to; see `envkit.training.trackers.resolve`.

    Raises:
        StoreError: environments, tasks or weights have changed since the run began, or the folder holds
            another kind of run.
    """

    def __init__(
        self,
        run: RunFolder,
        kinds: Sequence[type[Env]],
        backend: SandboxBackend,
        display: Display,
        should_stop: ShouldStop,
        sibling_of: BeforeAfter | None = None,
        trackers: Sequence[NamedTracker] = (),
    ) -> None:
        self._run, self._backend, self._display, self._should_stop = run, backend, display, should_stop
        self._trackers = trackers
        #: Logs to the trackers inside `tracked`.
        self._log: Log = _log_nothing
        study = reopen(run, kinds, backend)
        manifest = study.facts
        #: Sentences that a reader of the report must see.
        self._notes: list[str] = [str(note)] if (note := manifest.get("note")) else []
        code = training_code_digest()
        if manifest.get("training_code", code) != code:
            self._notes.append(
                "envkit's training code has changed since the run began: an uninterrupted run might have "
                "ended differently."
            )
            display.say(self._notes[-1])
        # Seeds train together and share the time of their steps, so their plan is kept.
        is_timed = study.plan.minutes > 0 and not study.plan.train.is_sft_alone
        self._is_timed = is_timed and "part_of" not in manifest
        if warm_start := study.plan.train.warm_start:
            self._notes.append(f"The warm start is {warm_start}; the times here leave it out.")
        self._evaluates = bool(manifest.get("evaluate", True))
        self._plan = study.plan
        tasks_per_env = share(study.plan.heldout_tasks, len(kinds))
        self._heldout = study.heldout
        self._evals = [
            EnvEval(
                run,
                part,
                kind,
                self._heldout[kind][:tasks_per_env],
                study.plan,
                backend,
                display,
                should_stop,
            )
            for kind, part in parts_of(run, kinds).items()
        ]
        #: Tasks of each phase, by environment.
        self._sft_tasks: dict[type[Env], list[Task]] = {}
        self._rl_tasks: dict[type[Env], list[Task]] = {}
        for kind, tasks in study.train.items():
            self._sft_tasks[kind], rl_tasks = phase_tasks(tasks, study.plan.train)
            self._rl_tasks[kind] = [_with_prefix(kind, t) for t in rl_tasks] if len(kinds) > 1 else rl_tasks
        use_threads(manifest["threads"])
        ref = resolve(manifest["model"], display)
        if ref.digest != manifest["model_digest"]:
            raise StoreError(
                f"{run.path}: the weights of {ref.id} have changed since the run began: their digest is "
                f"{ref.digest[:12]}, expected {manifest['model_digest'][:12]}; restore them, or start a new "
                "run"
            )
        config = study.plan.train
        self.policy: Policy = (
            Policy.of(ref, config) if sibling_of is None else sibling_of.policy.sibling(config.seed)
        )

    @property
    def config(self) -> TrainConfig:
        """Settings of the training."""
        return self._plan.train

    def run(self) -> list[Path]:
        """Run all phases that are not finished; returns the paths of the HTML reports, one per environment.

        Raises:
            StoreError: another process is writing to the run folder, or it is part of a run of several seeds.
            ModelError: there is too little memory.
        """
        if parent := self._run.manifest.get("part_of"):
            raise StoreError(
                f"{self._run.path} is one seed of {parent}, and its seeds train together; resume {parent}"
            )
        memory = training_memory_errors(self.config)
        with self._run.locked(), contextlib.closing(self.policy), self.tracked(), memory:
            try:
                self.begin()
                self._train_rl()
                self.finish()
            except Stopped:
                return self.report(complete=False)
            pages = self.report(complete=True)
            self.claim()
            return pages

    @contextlib.contextmanager
    def tracked(self) -> Generator[None]:
        """Log to the trackers for the length of the block.

        Raises:
            UsageError: see `envkit.training.trackers.open_trackers`.
        """
        manifest = self._run.manifest
        run = TrackedRun(
            str(manifest["id"]).replace("/", "-"),
            str(manifest.get("part_of", "")),
            self._run.path,
            {**to_mapping(self._plan.train), "environments": [each.kind.id for each in self._evals]},
        )
        with open_trackers(self._trackers, run, self._display.say) as self._log:
            yield

    def begin(self) -> None:
        """Run every phase before RL: controls, base evaluation, warm start.

        Raises:
            Stopped: the user asked to stop.
        """
        if self._evaluates:
            for env_eval in self._evals:
                env_eval.controls()
                env_eval.baselines()
        self._evaluate("base")
        if self._plan.train.is_warm:
            self._sft()
            self._evaluate("SFT")

    def finish(self) -> None:
        """Run every phase after RL: the final evaluation.

        Raises:
            Stopped: the user asked to stop.
        """
        if not self._plan.train.is_sft_alone:
            self._evaluate("SFT+RL" if self._plan.train.is_warm else "RL")

    def claim(self) -> None:
        """Write the claim of the trained adapter, unless its engine cannot repeat its bits.

        Called after the reports, which must not depend on it. What goes wrong is said, and a resumed run
        tries again.
        """
        try:
            self._claim()
        except EnvkitError as error:
            self._display.say(f"no claim is written beside the adapter: {error}")

    def _claim(self) -> None:
        store, config = CheckpointStore(self._run.path / "checkpoints"), self._plan.train
        folder = store.path(store.steps()[-1]) if store.steps() else self._run.path / "sft"
        if not folder.exists() or (folder / CLAIM).exists() or config.engine != "torch":
            return
        raise_if_stopped(self._should_stop)
        sampling = ClaimedSampling(
            self._plan.eval_temperature,
            config.max_turns,
            config.max_completion_length,
            config.stop_strings,
            config.max_context_length,
            config.kv_cache_mb,
        )
        hardware = ClaimedHardware.here(config.dtype, config.device)
        make_claim(
            folder,
            self.policy,
            config.model,
            self._heldout,
            sampling,
            config.seed,
            hardware,
            self._backend,
            self._should_stop,
        )

    def report(self, *, complete: bool) -> list[Path]:
        """Write the reports; returns the paths of the HTML pages.

        Args:
            complete: True if the run was not stopped early.
        """
        warnings = (
            *(() if complete else ("The run was stopped early; this is what there is.",)),
            *self._notes,
            *(() if self._evaluates else ("Evaluation was switched off.",)),
            *(f"Training ended early: {reason}." for reason in self._alarms()),
        )
        origins = {name: self._origin(name) for name in MODEL_ROWS}
        reports = [env_eval.report(origins, warnings) for env_eval in self._evals]
        step = max(CheckpointStore(self._run.path / "checkpoints").steps(), default=0)
        sft_alone = self._plan.train.is_sft_alone
        if rates := {name: rate for _, data in reports for name, rate in _rates_of(data, sft_alone).items()}:
            self._log("eval", step, rates)
        return [page for page, _ in reports]

    def copy_shared_results(self, other: BeforeAfter) -> None:
        """Copy the results of another seed's run that do not depend on the seed."""
        for env_eval, other_eval in zip(self._evals, other._evals, strict=True):
            env_eval.copy_shared_results(other_eval)

    def _origin(self, row: str) -> Origin:
        config, machine = self._plan.train, self._run.manifest.get("machine", {})
        adapter, seconds = "", 0.0
        if row == "SFT":
            folder = self._run.path / "sft"
            adapter, seconds = self._digest(folder), spent_on(folder, machine)
        elif row != "base":
            store = CheckpointStore(self._run.path / "checkpoints")
            folder = store.path(max(store.steps(), default=0))
            adapter, seconds = self._digest(folder), spent_on(folder, machine)
        return Origin(
            kind="local",
            model=config.model,
            adapter=adapter,
            training_seconds=seconds,
            temperature=self._plan.eval_temperature,
            max_completion_length=config.max_completion_length,
            stop_strings=config.stop_strings,
            max_context_length=config.max_context_length,
            digest=self._run.manifest["model_digest"],
        )

    def _digest(self, adapter: Path) -> str:
        return weights_digest(adapter) if adapter.exists() else ""

    def _alarms(self) -> list[str]:
        alarm = CheckpointStore(self._run.path / "checkpoints").alarm()
        return [alarm] if alarm else []

    def env_factories(self) -> dict[str, EnvFactory]:
        """Map each RL task's id to a function that makes its environment."""
        turns, found = self._plan.train.max_turns, dict[str, EnvFactory]()
        for kind, tasks in self._rl_tasks.items():
            make = functools.partial(kind, tasks=tasks, sandbox=self._backend, max_turns=turns)
            found |= {task.id: make for task in tasks}
        return found

    def _evaluate(self, row: str) -> None:
        if self._evaluates:
            for env_eval in self._evals:
                env_eval.evaluate(self.policy, row)

    def _sft(self) -> None:
        folder, unfinished = self._run.path / "sft", self._run.path / "sft-checkpoints"
        if (folder / "adapter_model.safetensors").exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # a killed run may have left it
            load_adapter(self.policy, folder)
            return
        config = self._plan.train
        if config.warm_start:
            raise StoreError(
                f"{folder} is gone; it was a copy of {config.warm_start}. Restore it, or start a new run"
            )
        with Stopwatch(self._run, "SFT warm start") as watch, self._run.journal("metrics") as journal:

            def on_loss(step: int, loss: float) -> None:
                watch.lap()
                journal.append({"phase": "sft", "step": step, "loss": loss})
                self._log("sft", step, {"loss": loss})

            run_warm_start(
                self.policy,
                self._sft_tasks,
                self._backend,
                config,
                self._display,
                on_loss,
                self._should_stop,
                CheckpointStore(unfinished),
            )
            save_adapter(self.policy, folder)  # a resumed run loads it instead of training again
            watch.lap()
        shutil.rmtree(unfinished, ignore_errors=True)

    def _train_rl(self) -> None:
        with (
            Rollouts(self.env_factories(), should_stop=self._should_stop) as rollouts,
            self.training(rollouts) as (trainer, on_step),
        ):
            trainer.resume()
            if self._is_timed:
                self._fit_steps(trainer, trainer.step)
            if not trainer.is_done():
                self._display.phase(_RL, trainer.last_step)
                trainer.train(on_step)
                if not trainer.is_done():  # ``on_step`` ended training because the user asked to stop
                    raise_if_stopped(self._should_stop)

    def _fit_steps(self, trainer: Trainer, step: int) -> None:
        """Let RL take as many steps as the budget leaves time for, beside the last evaluation.

        A resumed run takes the same steps, but how many depends on its time.

        Args:
            trainer: its `last_step` is set.
            step: steps taken so far.
        """
        folders = {folder.path: folder for folder in (self._run, *(e.folder for e in self._evals))}
        times = phases(time for folder in folders.values() for time in folder.read("phases", PhaseTime))
        seconds = {phase.name: phase.seconds for phase in times}
        # The trained model's evaluation takes as long as the warm-started one's.
        evaluation_s = seconds.get("evaluate SFT", seconds.get("evaluate base", 0.0))
        left_s = 60 * self._plan.minutes - sum(seconds.values()) - evaluation_s
        trainer.last_step = steps_in_time(left_s, step, seconds.get(_RL, 0.0), self._plan.step_s)

    @contextlib.contextmanager
    def training(
        self, rollouts: Rollouts, at_once: Callable[[], int] = lambda: 1
    ) -> Generator[tuple[Trainer, Callable[[StepMetrics], bool]]]:
        """Yield the trainer, not yet resumed, and its callback for each step.

        Args:
            rollouts: runs episodes of the tasks of `env_factories`.
            at_once: returns the number of adapters that shared the time of the last step.
        """
        config, store = self._plan.train, CheckpointStore(self._run.path / "checkpoints")
        rl_tasks = [task for tasks in self._rl_tasks.values() for task in tasks]
        with (
            self._run.journal("metrics") as metrics,
            self._run.journal("episodes") as episodes,
            Stopwatch(self._run, _RL) as watch,
        ):
            kind = TRLTrainer if config.backend == "trl" else GRPOTrainer
            collector = RolloutCollector(self.policy, rl_tasks, rollouts, config, episodes)
            trainer = kind(collector, metrics, store)

            def on_step(m: StepMetrics) -> bool:
                watch.lap(m.completion_tokens, at_once())
                self._log("rl", m.step, _numbers_of(m))
                speed = m.completion_tokens / m.rollout_s
                facts = f"reward {m.reward:.2f}, mixed groups {m.mixed:.0%}, {speed:.0f} tokens/s"
                if self._is_timed:
                    self._fit_steps(trainer, m.step)
                    facts += f", time for {trainer.last_step} steps"
                self._display.advance(m.step, facts)
                if m.raised > MANY_RAISED:
                    self._display.say(
                        f"step {m.step}: the environment raised an exception in {m.raised:.0%} of the "
                        "episodes; info.trace in episodes.jsonl says where"
                    )
                if m.void:
                    self._display.say(
                        f"step {m.step}: {m.void:.0%} of the episodes are void; info.error in episodes.jsonl "
                        "says why"
                    )
                return not self._should_stop()

            yield trainer, on_step


def _log_nothing(phase: str, step: int, metrics: Mapping[str, float]) -> None: ...


def _numbers_of(metrics: StepMetrics) -> dict[str, float]:
    """Return a step's numbers for trackers; those of each of several environments begin with its name."""
    numbers = asdict(metrics)
    del numbers["step"]
    parts: Mapping[str, Mapping[str, float]] = numbers.pop("environments")
    if len(parts) == 1:
        return numbers  # they are the environment's own
    return numbers | {f"{env}/{name}": value for env, part in parts.items() for name, value in part.items()}


def _rates_of(data: ReportData, sft_alone: bool) -> dict[str, float]:
    """Return pass@1 of base, warm start and trained model, with the ends of its interval, for trackers.

    Names have only characters that every tracker accepts, and are the same for all runs.
    """
    names = {"base": "base", "SFT": "trained" if sft_alone else "sft", "RL": "trained", "SFT+RL": "trained"}
    found: dict[str, float] = {}
    for row in data.rows:
        interval = summarise_row(row, (1,)).solve_rate.interval if row.name in names else None
        if interval is not None:
            rate = f"{data.environment}/{names[row.name]}/pass_at_1"
            found |= {rate: interval.estimate, f"{rate}_low": interval.low, f"{rate}_high": interval.high}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _with_prefix(kind: type[Env], task: Task) -> Task:
    """Prefix a task's id, source and operator with its environment, so that they are unique among several."""
    facts = task.metadata
    prefixed = {"source": f"{kind.id} {task.source}", "operator": f"{kind.id} {facts.get('operator', '')}"}
    return replace(task, id=f"{kind.id} {task.id}", metadata={**facts, **prefixed, "environment": kind.id})
