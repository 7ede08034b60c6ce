"""Run a benchmark specification: all agents on the same tasks, with one report per environment. Resumable."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast, final

from rich.markup import escape

from envkit import registry
from envkit.agents.cards import load_card
from envkit.agents.recorded import read_recorded, read_usage, write_recorded
from envkit.agents.scripted import random_edits
from envkit.benchmark.report_data import Difference, Row
from envkit.benchmark.spec import EVALUATION_SEED, SCRIPTS, AgentSpec, BenchSpec, EnvironmentSpec
from envkit.display import Display
from envkit.env import Env, ImportedTasks
from envkit.errors import ConfigError, EnvkitError, SandboxError, Stopped, StoreError, UsageError
from envkit.models import resolve, tokenizer_at_hand, weights_digest
from envkit.plain import decode, encode
from envkit.prices import load_prices
from envkit.rollout import EnvFactory, Rollouts
from envkit.sandbox import SandboxBackend
from envkit.stop import ShouldStop, never, raise_if_stopped
from envkit.store import RunFolder, write_atomic
from envkit.studies.agent_factory import (
    AgentFactory,
    model_of,
    outputs,
    require_usable,
    runs_here,
)
from envkit.studies.build_report import build_report, flat_settings
from envkit.studies.eval_runner import EvalRunner
from envkit.studies.heldout import require_heldout
from envkit.studies.machine import cpu_dtype, machine, use_threads
from envkit.studies.openings import opening_note, openings
from envkit.studies.provenance import code_digest, commit, require_code
from envkit.studies.run_records import RunFacts
from envkit.studies.turns import turns_of
from envkit.studies.validate_tasks import validate_tasks
from envkit.taskfile import digest, read_tasks, write_tasks
from envkit.types import JSON, Task, Usage

_KIND, _TASKS, _PRICES = "bench", "tasks.jsonl", "prices.toml"
#: Fields of a specification that the report shows in tables, so not among its settings.
_SHOWN_IN_TABLES = ("environments", "agents", "title")
#: Reasons to leave out an imported item, by the control agent that earned the wrong reward on it.
_UNFIT: Mapping[str, str] = {
    "oracle": "whose own solution does not pass its tests",
    "no-op": "that doing nothing passes",
}


def start(
    root: Path,
    spec: BenchSpec,
    *,
    backend: SandboxBackend,
    display: Display,
    command: str,
    prices: Path | None = None,
) -> RunFolder:
    """Create a run folder with everything that determines the run: spec, tasks, recorded outputs, digests.

    Args:
        root: parent of the run folders.
        spec: the environments and agents to measure.
        backend: sandbox backend, for environments that run code to make their tasks.
        display: shows progress.
        command: the command line, for the report.
        prices: a TOML file of prices on top of the shipped table.

    Raises:
        UsageError: an environment, adapter, card, price or set of outputs does not exist, or tasks are not
            held out. No folder is created in that case.
    """
    table = load_prices(prices)
    spec = _filled_in(spec)
    _require_scripts(spec)
    for row in spec.agents:
        require_usable(row, table)  # before tasks are made and controls are played, which takes minutes
    played = [
        (environment.name, kind, load_tasks(kind, environment, backend, display, spec.agents))
        for environment in spec.environments
        for kind in [registry.environment(environment.name)]
    ]
    if any(row.script == "random" for row in spec.agents):
        for _, _, imported in played:
            random_edits({task.id: task for task in imported.tasks})  # raises if it cannot edit one of them
    recorded = {
        (name, row.name): _recorded(row, imported)
        for name, _, imported in played
        for row in spec.agents
        if row.recorded
    }
    models = {
        model: resolve(model, display).digest
        for model in dict.fromkeys(model_of(row) for row in spec.agents if runs_here(row))
    }
    threads, dtype = _compute(bool(models))
    shared = {
        "command": command,
        "commit": commit(),
        "model": ", ".join(models),
        "model_digest": ", ".join(models.values()),
        "machine": asdict(machine(threads, dtype)),
    }
    facts: Mapping[str, JSON] = {
        "kind": _KIND,
        **shared,
        "spec": cast("Mapping[str, str]", encode(spec)),
        "threads": threads,
        "models": models,
        "cards": {row.name: asdict(load_card(row.card)) for row in spec.agents if row.card},
        "adapters": {row.name: weights_digest(Path(row.adapter)) for row in spec.agents if row.adapter},
        "tokenizer": tokenizer_at_hand() if any(row.recorded for row in spec.agents) else "",
        **openings(root, {name: imported.tasks for name, _, imported in played}),
    }
    with RunFolder.making(root, _KIND, facts) as run:
        if prices:  # a copy, because the user may change or delete the file
            write_atomic(run.path / _PRICES, prices.read_bytes())
        for name, kind, imported in played:
            digests = {"code": code_digest(kind), "tasks": digest(imported.tasks)}
            left_out = dict(imported.left_out)
            part = run.part(name, {"kind": f"{_KIND}-part", **shared, **digests, "left_out": left_out})
            write_tasks(part.path / _TASKS, imported.tasks, 0)
            for row in spec.agents:
                if row.recorded:
                    write_recorded(outputs(part, row), *recorded[name, row.name])
    return run


def with_baselines(spec: BenchSpec) -> BenchSpec:
    """Add the baselines of the spec's environments, unless a row of that script is there."""
    scripts, names = {row.script for row in spec.agents}, {row.name for row in spec.agents}
    found = {baseline.name: baseline for kind in _kinds(spec) for baseline in kind.baselines}
    added = [
        AgentSpec(name, script=name, samples=None if baseline.is_random else 1)
        for name, baseline in found.items()
        if name not in scripts | names
    ]
    return replace(spec, agents=(*spec.agents, *added))


def _kinds(spec: BenchSpec) -> list[type[Env]]:
    return [registry.environment(environment.name) for environment in spec.environments]


def plays(row: AgentSpec, kind: type[Env]) -> bool:
    """True if a row can play an environment; a baseline belongs to some environments only."""
    return not row.script or row.script in SCRIPTS or any(row.script == one.name for one in kind.baselines)


def _require_scripts(spec: BenchSpec) -> None:
    """Raise if no environment has a row's script.

    Raises:
        ConfigError: there is no such script.
    """
    kinds = _kinds(spec)
    for row in spec.agents:
        if not any(plays(row, kind) for kind in kinds):
            known = [*SCRIPTS, *(one.name for kind in kinds for one in kind.baselines)]
            listed = ", ".join(dict.fromkeys(known))
            raise ConfigError(f"agent {row.name}: no script {row.script!r}; expected {listed}")


def prices_of(run: RunFolder) -> Path | None:
    """Return the path of the run's own price table, if any; it goes on top of the shipped one."""
    path = run.path / _PRICES
    return path if path.exists() else None


def _filled_in(spec: BenchSpec) -> BenchSpec:
    """Fill in what other files decide, so that the run does not change with them.

    These are the base model of an adapter, and the token limit of an API row by its card, unless the row or
    the spec sets one.
    """

    def filled(row: AgentSpec) -> AgentSpec:
        if runs_here(row):
            row = replace(row, model=model_of(row))
        if not row.card or row.max_completion_length or spec.max_completion_length:
            return row
        return replace(row, max_completion_length=load_card(row.card).max_completion_tokens or None)

    return replace(spec, agents=tuple(filled(row) for row in spec.agents))


def _compute(models: bool) -> tuple[int, str]:
    """Return threads and dtype for local models. Without any, PyTorch is not imported."""
    if not models:
        return len(os.sched_getaffinity(0)), "no model"
    return use_threads(), cpu_dtype()


def load_tasks(
    kind: type[Env],
    spec: EnvironmentSpec,
    backend: SandboxBackend,
    display: Display,
    rows: Sequence[AgentSpec] = (),
) -> ImportedTasks:
    """Load the tasks of a spec, their recorded outputs, and counts of the items left out, by reason.

    Items of a published benchmark are first played by both control agents, because nothing else shows that
    they can be graded. An item is left out if the oracle does not solve it, or if the no-op does.

    Raises:
        UsageError: there are no tasks, or they are not held out.
        SandboxError: the sandbox broke while a control agent played, so its task could not be checked.
    """
    format_name, colon, path = spec.tasks.partition(":")
    is_published = bool(colon) and not Path(spec.tasks).exists()
    if not spec.tasks:
        imported = ImportedTasks(tuple(kind.make_tasks(spec.split, sandbox=backend, display=display)))
    elif is_published:
        imported = kind.import_tasks(format_name, Path(path))
    else:
        imported = ImportedTasks(tuple(registry.read_tasks_for(kind, Path(spec.tasks))))
    for row in rows:
        _require_recorded(row, imported)  # before the control agents play, which takes minutes
    tasks = imported.tasks[: spec.limit]
    require_heldout(tasks)
    left_out = Counter(imported.left_out)
    if is_published:
        # With the run's own seed, so that its control episodes find these grades in the cache.
        faults = validate_tasks(kind, tasks, backend, display, never, seed=EVALUATION_SEED)
        if void := next((fault for fault in faults if fault.void), None):
            raise SandboxError(f"{spec.tasks}: {void}; start again")
        unfit = {fault.task: _UNFIT[fault.agent] for fault in reversed(faults)}  # the oracle's overrides
        left_out.update(unfit.values())
        tasks = tuple(task for task in tasks if task.id not in unfit)
    for reason, count in left_out.items():
        display.say(escape(f"{spec.tasks}: left out {count} {reason}"))
    if not tasks:
        raise UsageError(f"{spec.tasks or kind.id}: there are no tasks that {kind.id} can pose")
    return ImportedTasks(tasks, imported.recorded, left_out)


def differences(spec: BenchSpec) -> list[Difference]:
    """Pair every adapter with the first row of its base model, if the spec has such a row."""
    bases: dict[str, str] = {}
    for row in spec.agents:
        if runs_here(row) and not row.adapter:
            bases.setdefault(model_of(row), row.name)
    return [
        Difference(row.name, base, f"{row.name} against {base}")
        for row in spec.agents
        if row.adapter and (base := bases.get(model_of(row)))
    ]


def _require_recorded(row: AgentSpec, imported: ImportedTasks) -> None:
    """Raise if a row's recorded outputs neither came with the tasks nor are a file.

    Raises:
        UsageError: there are no such outputs; the message lists the known ones.
    """
    if row.recorded and row.recorded not in imported.recorded and not Path(row.recorded).is_file():
        known = ", ".join(sorted(imported.recorded)) or "none"
        raise UsageError(
            f"agent {row.name}: no recorded outputs {row.recorded!r} came with the tasks (there is: "
            f"{known}), and there is no such file"
        )


def _recorded(
    row: AgentSpec, imported: ImportedTasks
) -> tuple[Mapping[str, Sequence[str]], Mapping[str, Usage]]:
    """Return a row's recorded outputs by task id, and their token usage if it is known for all of them.

    Raises:
        UsageError: an output is missing for some of the tasks.
    """
    texts, usage = imported.recorded.get(row.recorded), dict[str, Usage]()
    if texts is None:
        _require_recorded(row, imported)
        file = Path(row.recorded)
        texts, usage = read_recorded(file), read_usage(file)
        if usage.keys() != texts.keys():  # the report would show a part of the cost as all of it
            usage = {}
    if missing := [task.id for task in imported.tasks if task.id not in texts]:
        raise UsageError(
            f"agent {row.name}: {row.recorded} has no output for {len(missing)} of "
            f"{len(imported.tasks)} tasks, {missing[0]} first"
        )
    return {task.id: texts[task.id] for task in imported.tasks}, usage


@final
class Bench:
    """Runs a benchmark that `start` created, or continues it.

    Args:
        run: the run folder.
        backend: sandbox backend.
        display: live view.
        should_stop: polled while episodes are played; if it returns True, the run ends cleanly and writes its
            reports.
        budget_usd: replaces the spec's budget, in US dollars; earlier spending counts.

    Raises:
        StoreError: not a benchmark run, damaged, or its manifest was edited.
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
        if (kind := manifest.get("kind")) != _KIND:
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
            use_threads(threads)
        self._agents = AgentFactory(self._spec, fixed, load_prices(prices_of(run)), display, should_stop)

    @property
    def parts(self) -> list[tuple[type[Env], RunFolder]]:
        """Environments of the run, each with its folder."""
        kinds = [registry.environment(environment.name) for environment in self._spec.environments]
        return [(kind, RunFolder.open(self._run.path / kind.id)) for kind in kinds]

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
            StoreError: another process is writing to the folder; or code, tasks, weights, cards or adapters
                have changed since the run began; or the run is a rescored one.
            UsageError: a provider refused, or the budget was used up. All other rows are played and all
                reports written first; then the first refusal is raised.
            SandboxError: an environment's sandboxes broke; see `EvalRunner.play`. Reports are written.
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
        """Play and report one environment. Appends errors to ``failures``, so that the others still run."""
        require_code(kind, part)
        tasks = self.tasks(part)
        runner = EvalRunner(part, tasks, self._display)
        reasons: list[str] = []  # why rows are incomplete
        with Rollouts(self.env_factory(kind, tasks), should_stop=self._should_stop) as rollouts:
            for row in self.rows_on(kind):
                if runner.finished(row.name, row.samples or 1):
                    continue
                try:
                    raise_if_stopped(self._should_stop)
                    with self._agents.agent(row, part, kind, tasks, self._backend) as agent:
                        runner.play(rollouts, agent, row.name, row.samples or 1)
                    del agent  # free its base model before the next row loads another one
                except Stopped as stopped:
                    reasons.append(str(stopped))
                    break
                except SandboxError as error:  # the same sandboxes would fail the next agents too
                    failures.append(error)
                    reasons.append(str(error))
                    break
                except UsageError as error:  # from a provider or the budget: other rows can continue
                    self._display.say(escape(f"{row.name} is refused: {error}"))
                    failures.append(error)
                    reasons.append(str(error))
        return self.report(kind, part, "; ".join(dict.fromkeys(reasons)))

    def tasks(self, part: RunFolder) -> list[Task]:
        """Read the tasks that the run began with.

        Raises:
            StoreError: the task file has changed.
        """
        tasks = read_tasks(part.path / _TASKS)
        if digest(tasks) != part.manifest["tasks"]:
            raise StoreError(
                f"{part.path / _TASKS}: not the tasks that the run began with; restore the file, or start a "
                "new run"
            )
        return tasks

    def env_factory(self, kind: type[Env], tasks: Sequence[Task]) -> EnvFactory:
        """Return a function that makes environments of one kind with these tasks."""
        return lambda: kind(tasks=tasks, sandbox=self._backend, max_turns=self._turns(kind))

    def _turns(self, kind: type[Env]) -> int:
        return turns_of([kind], self._spec.max_turns)

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
