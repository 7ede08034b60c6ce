"""Run a benchmark specification: all agents on the same tasks, with one report per environment. Resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import cast, final

from envkit.env import Env, registry
from envkit.env.taskfile import digest, read_tasks
from envkit.errors import (
    SETUP_ERRORS,
    ContractError,
    EnvkitError,
    SandboxError,
    Stopped,
    StoreError,
    UsageError,
)
from envkit.measure.report.data import Difference, Row
from envkit.measure.spec import SCRIPTS, AgentSpec, BenchSpec
from envkit.models import require_training
from envkit.rollout import EnvFactory, Rollouts
from envkit.runs.benchmark.agent_factory import AgentFactory, model_of, runs_here
from envkit.runs.benchmark.eval_runner import EvalRunner
from envkit.runs.benchmark.setup import KIND, TASKS_FILE, plays, prices_of
from envkit.runs.folder.build_report import build_report, flat_settings
from envkit.runs.folder.machine import use_threads
from envkit.runs.folder.openings import opening_note
from envkit.runs.folder.provenance import require_unchanged
from envkit.runs.folder.run_records import RunFacts
from envkit.runs.folder.turns import turns_of
from envkit.runtime.display import Display
from envkit.runtime.plain import decode, encode
from envkit.runtime.prices import load_prices
from envkit.runtime.stop import ShouldStop, raise_if_stopped
from envkit.runtime.store import RunFolder, folder_name
from envkit.sandbox import SandboxBackend
from envkit.types import JSON, Task

#: Fields of a specification that the report shows in tables, so not among its settings.
_SHOWN_IN_TABLES = ("environments", "agents", "title")


@final
class Bench:
    """Runs a benchmark that `bench_setup.start` created, or continues it.

    Args:
        run: the run folder.
        backend: sandbox backend.
        display: live view.
        should_stop: polled while episodes are played; if it returns True, the run ends cleanly and writes its
            reports.
        budget_usd: replaces the spec's budget, in US dollars; earlier spending counts.

    Raises:
        StoreError: not a benchmark run, damaged, or its manifest was edited.
        MissingExtraError: it has local models, and the extra ``train`` is not installed.
    """

    def __init__(
        self,
        run: RunFolder,
        backend: SandboxBackend,
        display: Display,
        should_stop: ShouldStop,
        *,
        budget_usd: float | None = None,
    ) -> None:
        manifest = run.manifest
        if (kind := manifest.get("kind")) != KIND:
            raise StoreError(f"{run.path} is a run of kind {kind!r}; expected one of `envkit bench`")
        run.require_unedited()
        try:
            self._spec = decode(BenchSpec, manifest["spec"], "spec")
            threads = manifest["threads"]
            fixed = {key: manifest[key] for key in ("models", "adapters", "cards", "machine")}
            fixed["tokenizer"] = manifest.get("tokenizer", "")  # older runs estimate nothing
        except (KeyError, ValueError) as error:
            raise StoreError(f"{run.path / 'manifest.json'}: {error}; it is damaged") from error
        if budget_usd is not None:
            self._spec = replace(self._spec, budget_usd=budget_usd)
        self._run, self._backend, self._display, self._should_stop = run, backend, display, should_stop
        if fixed["models"]:
            require_training()
            use_threads(threads)
        self._agents = AgentFactory(self._spec, fixed, load_prices(prices_of(run)), display, should_stop)

    @property
    def parts(self) -> list[tuple[type[Env], RunFolder]]:
        """Environments of the run, each with its folder."""
        kinds = [registry.environment(environment.name) for environment in self._spec.environments]
        return [(kind, RunFolder.open(self._run.path / folder_name(kind.id))) for kind in kinds]

    @property
    def rows(self) -> list[AgentSpec]:
        """Agents of the run, with defaults filled in from the spec."""
        return [self._spec.of(row) for row in self._spec.agents]

    def rows_on(self, kind: type[Env]) -> list[AgentSpec]:
        """The agents that play an environment."""
        return [row for row in self.rows if plays(row, kind)]

    def run(self) -> list[Path]:
        """Play all missing episodes; returns the paths of the reports, one per environment.

        Raises:
            StoreError: another process is writing to the folder; or code, packages, tasks, weights, cards or
                adapters have changed since the run began; or the run is a rescored one.
            UsageError: a provider refused, or the budget was used up. All other rows are played and all
                reports written first; then the first refusal is raised.
            SandboxError, ContractError: an environment or its sandboxes broke; see `EvalRunner.play`. Reports
                are written.
            ConfigError, MissingExtraError, ModelError: a row cannot be played with this setup. The run ends
                with this environment's report, because the calls of other rows may cost money.
        """
        if original := self._run.manifest.get("rescored"):
            raise StoreError(
                f"{self._run.path} holds the episodes of {original}, graded again; resume {original} instead"
            )
        with self._run.locked():
            for row in self.rows:
                self._agents.require_unchanged(row)
                for _, part in self.parts:
                    self._agents.count_spent(row, part)
            failures: list[EnvkitError] = []
            pages = [self._play(kind, part, failures) for kind, part in self.parts]
        if failures:
            raise failures[0]
        return pages

    def _play(self, kind: type[Env], part: RunFolder, failures: list[EnvkitError]) -> Path:
        """Play and report one environment. Appends errors to ``failures``, so that the others still run.

        Raises:
            ConfigError, MissingExtraError, ModelError: see `run`.
        """
        require_unchanged(kind, kind.equip(self._backend).lock, part)
        tasks = self.tasks(part)
        runner = EvalRunner(part, tasks, self._display)
        reasons: list[str] = []  # why rows are incomplete
        with self._rollouts(kind, tasks) as rollouts:
            for row in self.rows_on(kind):
                try:
                    if runner.finished(row.name, row.samples or 1):
                        runner.report_raised(row.name)
                        continue
                    raise_if_stopped(self._should_stop)
                    # Scripts take the environment's own actions, which need no harness.
                    played = kind.graded_as() if row.script else kind
                    if played is not kind:
                        note = f"{row.name} plays {played.id} itself, without the program of {kind.id}"
                        self._display.say(note)
                    with (
                        nullcontext(rollouts) if played is kind else self._rollouts(played, tasks) as own,
                        self._agents.agent(row, part, played, tasks, self._backend) as agent,
                    ):
                        runner.play(own, agent, row.name, row.samples or 1)
                    del agent  # free its base model before the next row loads another one
                except Stopped as stopped:
                    reasons.append(str(stopped))
                    break
                except (SandboxError, ContractError) as error:  # it would fail the next agents too
                    failures.append(error)
                    reasons.append(str(error))
                    break
                except SETUP_ERRORS as error:
                    self._display.say(f"report: {self.report(kind, part, str(error))}")
                    raise
                except UsageError as error:  # from a provider or the budget: other rows can continue
                    self._display.say(f"{row.name} is refused: {error}")
                    failures.append(error)
                    reasons.append(str(error))
        return self.report(kind, part, "; ".join(dict.fromkeys(reasons)))

    def tasks(self, part: RunFolder) -> list[Task]:
        """Read the tasks that the run began with.

        Raises:
            StoreError: the task file has changed.
        """
        tasks = read_tasks(part.path / TASKS_FILE)
        if digest(tasks) != part.manifest.get("tasks"):
            raise StoreError(
                f"{part.path / TASKS_FILE}: not the tasks that the run began with; restore the file, or "
                "start a new run"
            )
        return tasks

    def _rollouts(self, kind: type[Env], tasks: Sequence[Task]) -> Rollouts:
        return Rollouts(self.env_factory(kind, tasks), should_stop=self._should_stop)

    def env_factory(self, kind: type[Env], tasks: Sequence[Task]) -> EnvFactory:
        """Return a function that makes environments of one kind with these tasks."""
        return lambda: kind(tasks=tasks, sandbox=self._backend, max_turns=self._turns(kind))

    def _turns(self, kind: type[Env]) -> int:
        return turns_of([kind], self._spec.max_turns)

    def is_complete(self, kind: type[Env], part: RunFolder) -> bool:
        """True if every row that plays an environment has all of its episodes there, void ones included."""
        tasks = self.tasks(part)
        runner = EvalRunner(part, tasks, self._display)
        samples = {row.name: row.samples or 1 for row in self.rows_on(kind)}
        return all(len(runner.counted(name, count)) == len(tasks) * count for name, count in samples.items())

    def report(self, kind: type[Env], part: RunFolder, ended_early: str = "") -> Path:
        """Write an environment's report of the episodes played so far.

        Args:
            kind: the environment.
            part: its folder.
            ended_early: reason why episodes are missing; empty if none are.
        """
        spec, tasks = self._spec, self.tasks(part)
        fields = cast("Mapping[str, JSON]", encode(spec))
        settings = {name: value for name, value in fields.items() if name not in _SHOWN_IN_TABLES}
        runner = EvalRunner(part, tasks, self._display)
        left_out = RunFacts.of(part).left_out
        rows: list[Row] = []
        notes: list[str] = []
        for row in self.rows_on(kind):
            counted = runner.counted(row.name, row.samples or 1)
            if more := len(runner.played(row.name)) - len(counted):
                notes.append(
                    f"{row.name}: {more} more episodes are recorded, of a batch that did not end. They do "
                    "not count, because the episodes that end first are no fair sample."
                )
            origin = self._agents.origin(row, part, {episode.key for episode in counted})
            expected = SCRIPTS.get(row.script)
            if reported := runner.report_row(
                row.name, self._agents.describe(row, kind), counted, expected, origin
            ):
                rows.append(reported)
                notes += self._agents.differences_from_training(row, self._turns(kind))
        path, _ = build_report(
            part,
            kind,
            self._backend,
            tasks,
            rows,
            differences(spec),
            max_turns=self._turns(kind),
            title=spec.title or f"{kind.id}: comparison on held-out tasks",
            ks=(1, spec.samples) if spec.samples > 1 else (1,),
            config=flat_settings(settings),
            warnings=(
                *((f"The run ended early ({ended_early}); this is what there is.",) if ended_early else ()),
                *notes,
                *opening_note(self._run.manifest, kind.id),
                *(f"Left out: {count} {reason}." for reason, count in left_out.items()),
            ),
        )
        return path


def differences(spec: BenchSpec) -> list[Difference]:
    """Pair every adapter with the row of its base model, if there is one, that is asked most like it."""
    bases = [spec.of(row) for row in spec.agents if runs_here(row) and not row.adapter]
    pairs: list[Difference] = []
    for row in (spec.of(row) for row in spec.agents if row.adapter):
        own = [base for base in bases if model_of(base) == model_of(row)]
        if own:
            base = min(own, key=lambda base: _unequal_settings(base, row))  # the first of equals
            pairs.append(Difference(row.name, base.name, f"{row.name} against {base.name}"))
    return pairs


def _unequal_settings(one: AgentSpec, other: AgentSpec) -> int:
    """Number of settings in which two models are asked differently."""
    settings = (
        "temperature",
        "max_completion_length",
        "stop_strings",
        "max_context_length",
        "shots",
        "system",
    )
    return sum(getattr(one, setting) != getattr(other, setting) for setting in settings)
