"""Evaluate one environment in a before/after run: play its held-out tasks and write its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import final

from envkit.agents.local import LocalAgent
from envkit.agents.scripted import baseline
from envkit.engine.protocol import Sampling
from envkit.env import Env
from envkit.env.authored import Baseline
from envkit.errors import SandboxError, TrainingError
from envkit.measure.report.data import Difference, Origin, ReportData
from envkit.rollout import Rollouts
from envkit.runs.before_after.plan import Plan
from envkit.runs.benchmark.eval_runner import EvalRunner
from envkit.runs.benchmark.validate_tasks import controls
from envkit.runs.folder.build_report import build_report, flat_settings
from envkit.runs.folder.openings import opening_note
from envkit.runtime.display import Display
from envkit.runtime.stop import ShouldStop
from envkit.runtime.store import RunFolder
from envkit.sandbox import SandboxBackend
from envkit.training.config import TrainConfig, to_mapping
from envkit.training.policy import Policy
from envkit.types import Task

#: Model rows of the report, in order: name -> description.
MODEL_ROWS: Mapping[str, str] = {
    "base": "the untouched model",
    "SFT": "after the warm start on known answers to train tasks",
    "SFT+RL": "after LoRA reinforcement learning on top",
    "RL": "after LoRA reinforcement learning, without a warm start",
}
_DIFFERENCES = (
    Difference("SFT+RL", "base", "SFT+RL"),
    Difference("SFT+RL", "SFT", "RL's own part"),
    Difference("SFT", "base", "The warm start"),
    Difference("RL", "base", "RL"),
)


def _description(row: str, config: TrainConfig) -> str:
    """Describe a row of `MODEL_ROWS`."""
    if row == "SFT" and config.warm_start:
        return "the adapter that training began with"
    return MODEL_ROWS[row]


def _over_baselines(kind: type[Env], config: TrainConfig) -> list[Difference]:
    """Comparisons of the trained rows with an environment's baselines, and with the base where those fail."""
    return [
        difference
        for trained in (["SFT"] if config.is_sft_alone else ["SFT+RL", "RL"])
        for chosen in kind.baselines
        for difference in (
            Difference(trained, chosen.name, f"{trained} over {chosen.name}"),
            *(
                [Difference(trained, "base", f"On tasks that {chosen.name} does not solve", chosen.name)]
                if not chosen.is_random
                else []
            ),
        )
    ]


@final
class EnvEval:
    """Evaluates control agents and models on an environment's held-out tasks, and writes the report.

    Args:
        run: the run folder, with the records of training.
        part: the environment's folder; with one environment, the run folder.
        kind: the environment.
        tasks: held-out tasks.
        plan: sizes and settings of the run.
        backend: sandbox backend.
        display: live view.
        should_stop: polled while episodes are played.
    """

    def __init__(
        self,
        run: RunFolder,
        part: RunFolder,
        kind: type[Env],
        tasks: Sequence[Task],
        plan: Plan,
        backend: SandboxBackend,
        display: Display,
        should_stop: ShouldStop,
    ) -> None:
        self._run = run
        #: The environment's folder.
        self.folder = part
        #: The environment and its held-out tasks.
        self.kind, self.tasks = kind, tasks
        self._plan, self._backend = plan, backend
        self._runner = EvalRunner(part, tasks, display)
        self._should_stop = should_stop

    def _make_env(self) -> Env:
        return self.kind(tasks=self.tasks, sandbox=self._backend, max_turns=self._plan.train.max_turns)

    def _rollouts(self) -> Rollouts:
        return Rollouts(self._make_env, should_stop=self._should_stop)

    def controls(self) -> None:
        """Play both control agents, oracle and no-op.

        Raises:
            Stopped: the user asked to stop.
            TrainingError: the oracle fails a task, or the no-op solves one, so results would mean nothing.
            SandboxError: an episode of a control agent is void.
        """
        kind = self.kind.graded_as()  # a harness has no known answers, and is not needed to try the tasks
        make_env = self._make_env
        if kind is not self.kind:
            make_env = partial(kind, tasks=self.tasks, sandbox=self._backend)
        with Rollouts(make_env, should_stop=self._should_stop) as rollouts:
            for control in controls(kind, self.tasks):
                name = control.agent.name
                self._runner.play(rollouts, control.agent, name, samples=1)
                faults = control.faults(self._runner.played(name))
                if void := next((fault for fault in faults if fault.void), None):
                    raise SandboxError(str(void))
                if faults:
                    raise TrainingError(f"{faults[0]}; the task or its oracle is broken, make them again")

    def baselines(self) -> None:
        """Play the environment's baselines.

        Raises:
            Stopped: the user asked to stop.
        """
        with self._rollouts() as rollouts:
            for chosen in self.kind.baselines:
                agent = baseline(chosen, self.tasks, self._backend)
                self._runner.play(rollouts, agent, chosen.name, self._samples_of(chosen))

    def _samples_of(self, chosen: Baseline) -> int:
        return self._plan.samples if chosen.is_random else 1

    def copy_shared_results(self, other: EnvEval) -> None:
        """Copy results that do not depend on training (all but the trained rows') from another seed's run."""
        for row in ("oracle", "no-op", *(chosen.name for chosen in self.kind.baselines), "base"):
            self._runner.copy_shared_results(other._runner, row)

    def evaluate(self, policy: Policy, row: str) -> None:
        """Play a row's missing episodes with the policy's current adapter.

        Args:
            policy: the policy to evaluate.
            row: the row's name, one of `MODEL_ROWS`.

        Raises:
            Stopped: the user asked to stop.
            SandboxError, ContractError: see `EvalRunner.play`.
        """
        if self._runner.finished(row, self._plan.samples):
            self._runner.report_raised(row)
            return
        policy.sync()
        config = self._plan.train
        sampling = Sampling(
            self._plan.eval_temperature, config.max_completion_length, stop_strings=config.stop_strings
        )
        agent = LocalAgent(
            row,
            policy.engine,
            policy.renderer,
            sampling,
            config.turns,
            max_context_length=config.max_context_length,
            should_stop=self._should_stop,
        )
        with self._rollouts() as rollouts:
            self._runner.play(rollouts, agent, row, self._plan.samples)

    def report(self, origins: Mapping[str, Origin], warnings: Sequence[str]) -> tuple[Path, ReportData]:
        """Write the report of the episodes played so far; returns the path of the HTML page and the data.

        Args:
            origins: origin of the answers of each row of `MODEL_ROWS`.
            warnings: sentences that a reader of the report must see.
        """
        row, counted = self._runner.report_row, self._runner.counted
        config, samples = self._plan.train, self._plan.samples
        rows = [
            row("oracle", "the known answer; must be 1", counted("oracle", 1), 1.0),
            row("no-op", "does nothing; must be 0", counted("no-op", 1), 0.0),
            *(
                row(chosen.name, chosen.description, counted(chosen.name, self._samples_of(chosen)))
                for chosen in self.kind.baselines
            ),
            *(
                row(name, _description(name, config), counted(name, samples), origin=origins[name])
                for name in MODEL_ROWS
            ),
        ]
        fault = self.folder.manifest.get("unaudited")
        unaudited = [f"The environment had no valid certificate: {fault}."] if fault else []
        return build_report(
            self.folder,
            self.kind,
            self._backend,
            self.tasks,
            [reported for reported in rows if reported is not None],
            (*_DIFFERENCES, *_over_baselines(self.kind, config)),
            training=self._run,
            max_turns=config.max_turns,
            title=f"{self.kind.id}: held-out tasks before and after training",
            ks=(1, self._plan.samples),
            config={
                **flat_settings(to_mapping(config)),
                **({"minutes": self._plan.minutes} if self._plan.minutes else {}),
                "eval_temperature": self._plan.eval_temperature,
                "environments": str(self._run.manifest.get("environment", self.kind.id)),
            },
            warnings=(*warnings, *opening_note(self._run.manifest, self.kind.id), *unaudited),
        )
