"""Running a benchmark specification: every agent on the same tasks, resumable, a report per environment."""

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
from envkit.benchmark.report_data import Difference, Row
from envkit.benchmark.spec import EVALUATION_SEED, SCRIPTS, AgentSpec, BenchSpec, EnvironmentSpec
from envkit.display import Display
from envkit.env import Env, ImportedTasks
from envkit.errors import EnvkitError, SandboxError, Stopped, StoreError, UsageError
from envkit.models import resolve, weights_digest
from envkit.plain import decode, encode
from envkit.prices import load_prices
from envkit.rollout import EnvFactory, Rollouts
from envkit.sandbox import SandboxBackend
from envkit.stop import ShouldStop, check, never
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
from envkit.studies.provenance import code_digest, commit, require_code
from envkit.studies.validate_tasks import validate_tasks
from envkit.taskfile import digest, read_tasks, write_tasks
from envkit.types import JSON, Task, Usage

_KIND, _TASKS, _PRICES = "bench", "tasks.jsonl", "prices.toml"
#: Fields of a specification that a report shows elsewhere.
_TABLES = ("environments", "agents", "title")
#: Why an item of others is no task, by the control that earns what it must not.
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
    """Make a run folder with all that the run is a function of: spec, tasks, outputs, digests.

    Args:
        root: where run folders go.
        spec: what to measure.
        backend: for what has to be run to make tasks.
        display: shows how far it is.
        command: the command line.
        prices: a price table on top of the shipped one.

    Raises:
        UsageError: an environment, adapter, card, price or set of outputs that is not there, or tasks that
            are not held out. Nothing has been made then.
    """
    table = load_prices(prices)
    spec = _with_lengths(spec)
    played = [
        (one.name, kind, load_tasks(kind, one, backend, display, spec.agents))
        for one in spec.environments
        for kind in [registry.environment(one.name)]
    ]
    for row in spec.agents:
        require_usable(row, table, [imported.tasks for _, _, imported in played])
    recorded = {
        (name, row.name): _recorded(row, imported)
        for name, _, imported in played
        for row in spec.agents
        if row.recorded
    }
    models = {
        model: resolve(model, display.say).digest
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
    }
    with RunFolder.making(root, _KIND, facts) as run:
        if prices:  # theirs may change, or go
            write_atomic(run.path / _PRICES, prices.read_bytes())
        for name, kind, imported in played:
            began = {
                "code": code_digest(kind),
                "tasks": digest(imported.tasks),
                "left_out": dict(imported.left_out),
            }
            part = run.part(name, {"kind": f"{_KIND}-part", **shared, **began})
            write_tasks(part.path / _TASKS, imported.tasks, 0)
            for row in spec.agents:
                if row.recorded:
                    write_recorded(outputs(part, row), *recorded[name, row.name])
    return run


def prices_of(run: RunFolder) -> Path | None:
    """A run's own price table on top of the shipped one, if it was given any."""
    path = run.path / _PRICES
    return path if path.exists() else None


def _with_lengths(spec: BenchSpec) -> BenchSpec:
    """The spec with the most tokens of every row behind an API: its card's, where nobody says others."""

    def filled(row: AgentSpec) -> AgentSpec:
        if not row.card or row.max_completion_length or spec.max_completion_length:
            return row
        return replace(row, max_completion_length=load_card(row.card).max_completion_tokens or None)

    return replace(spec, agents=tuple(filled(row) for row in spec.agents))


def _compute(models: bool) -> tuple[int, str]:
    """Threads and dtype of the models that run here; where none do, PyTorch need not be installed."""
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
    """The tasks that a spec names, what was recorded on them, and how many items are none, by reason.

    On items of others both controls are played first, since nothing else tells whether they can be graded:
    what the oracle does not solve, or doing nothing solves, is left out.

    Raises:
        UsageError: there are none, or they are not held out.
        SandboxError: the machinery broke while a control was played, so that nothing is known of its task.
    """
    form, colon, path = spec.tasks.partition(":")
    theirs = bool(colon) and not Path(spec.tasks).exists()
    if not spec.tasks:
        found = ImportedTasks(tuple(kind.make_tasks("heldout", sandbox=backend, display=display)))
    elif theirs:
        found = kind.import_tasks(form, Path(path))
    else:
        found = ImportedTasks(tuple(registry.read_tasks_for(kind, Path(spec.tasks))))
    for row in rows:
        _require_recorded(row, found)  # before the controls are played, which takes minutes
    tasks = found.tasks[: spec.limit]
    require_heldout(tasks)
    left_out = Counter(found.left_out)
    if theirs:
        # With the seed of the run, whose own controls then find these grades made.
        broken = validate_tasks(kind, tasks, backend, display, never, seed=EVALUATION_SEED)
        if void := next((one for one in broken if one.void), None):
            raise SandboxError(f"{spec.tasks}: {void}; start again")
        unfit = {one.task: _UNFIT[one.agent] for one in reversed(broken)}  # the oracle's count first
        left_out.update(unfit.values())
        tasks = tuple(task for task in tasks if task.id not in unfit)
    for reason, count in left_out.items():
        display.say(escape(f"{spec.tasks}: left out {count} {reason}"))
    if not tasks:
        raise UsageError(f"{spec.tasks or kind.id}: there are no tasks that {kind.id} can pose")
    return ImportedTasks(tasks, found.recorded, left_out)


def differences(spec: BenchSpec) -> list[Difference]:
    """Every adapter against the first row of the model that it lies on, where there is one."""
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
    """Refuse a row of recorded outputs that are neither with the tasks nor in a file.

    Raises:
        UsageError: there are no such outputs; the message names those that there are.
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
    """A row's recorded outputs for the tasks that are played, and what they cost where that is known.

    Raises:
        UsageError: there are none for some of the tasks.
    """
    said, usage = imported.recorded.get(row.recorded), dict[str, Usage]()
    if said is None:
        _require_recorded(row, imported)
        file = Path(row.recorded)
        said, usage = read_recorded(file), read_usage(file)
        if usage.keys() != said.keys():  # a cost of some would be taken for the cost of all
            usage = {}
    if missing := [task.id for task in imported.tasks if task.id not in said]:
        raise UsageError(
            f"agent {row.name}: {row.recorded} has no output for {len(missing)} of "
            f"{len(imported.tasks)} tasks, {missing[0]} first"
        )
    return {task.id: said[task.id] for task in imported.tasks}, usage


@final
class Bench:
    """A run that `start` made, whatever of it is still to do.

    Args:
        run: the folder.
        backend: sandbox backend.
        display: live view.
        should_stop: polled while episodes are played; True ends the run cleanly, with its reports.
        budget_usd: another budget than the spec's, what was spent before included.

    Raises:
        StoreError: the folder is of another kind of run.
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
            began = {key: manifest[key] for key in ("models", "adapters", "cards", "machine")}
        except (KeyError, ValueError) as error:
            raise StoreError(f"{run.path / 'manifest.json'}: {error}; it is damaged") from error
        if budget_usd is not None:
            self._spec = replace(self._spec, budget_usd=budget_usd)
        self._run, self._backend, self._display, self._should_stop = run, backend, display, should_stop
        if began["models"]:
            use_threads(threads)
        self._agents = AgentFactory(self._spec, began, load_prices(prices_of(run)), display, should_stop)

    @property
    def parts(self) -> list[tuple[type[Env], RunFolder]]:
        """The environments, with the folder of each."""
        kinds = [registry.environment(one.name) for one in self._spec.environments]
        return [(kind, RunFolder.open(self._run.path / kind.id)) for kind in kinds]

    @property
    def rows(self) -> list[AgentSpec]:
        """The agents, with all fields filled in."""
        return [self._spec.of(row) for row in self._spec.agents]

    def run(self) -> list[Path]:
        """Do what is left to do; returns the paths of the reports, one for each environment.

        Raises:
            StoreError: another process is at work in the folder; or code, tasks, weights or adapters are not
                what the run began with.
            UsageError: a provider refused to go on, or the budget was used up: the first refusal, when all
                that it does not touch has been played and reported.
            SandboxError: an environment's machinery broke; see `EvalRunner.play`. Reports are written.
        """
        if original := self._run.manifest.get("rescored"):
            raise StoreError(
                f"{self._run.path} holds the episodes of {original}, graded again; go on with that one"
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
        """Play and report one environment; errors join ``failures``, and the next is asked."""
        require_code(kind, part)
        tasks = self.tasks(part)
        arms = EvalRunner(part, tasks, self._display)
        cut: list[str] = []
        with Rollouts(self.env_factory(kind, tasks), should_stop=self._should_stop) as rollouts:
            for row in self.rows:
                if arms.finished(row.name, row.samples or 1):
                    continue
                try:
                    check(self._should_stop)
                    with self._agents.agent(row, part, kind, tasks) as agent:
                        arms.play(rollouts, agent, row.name, row.samples or 1)
                    del agent  # it holds its base, and the next row's may be another
                except Stopped as stopped:
                    cut.append(str(stopped))
                    break
                except SandboxError as error:  # the next agents would meet the same broken machinery
                    failures.append(error)
                    cut.append(str(error))
                    break
                except UsageError as error:  # a provider's, or the budget's: it touches no other row
                    self._display.say(escape(f"{row.name} is refused: {error}"))
                    failures.append(error)
                    cut.append(str(error))
        return self.report(kind, part, "; ".join(dict.fromkeys(cut)))

    def tasks(self, part: RunFolder) -> list[Task]:
        """The tasks of an environment, as the run began with them.

        Raises:
            StoreError: they have changed.
        """
        tasks = read_tasks(part.path / _TASKS)
        if digest(tasks) != part.manifest["tasks"]:
            raise StoreError(f"{part.path / _TASKS}: not the tasks that the run began with")
        return tasks

    def env_factory(self, kind: type[Env], tasks: Sequence[Task]) -> EnvFactory:
        """Makes an environment's environments."""
        return lambda: kind(tasks=tasks, sandbox=self._backend, max_turns=self._spec.max_turns)

    def report(self, kind: type[Env], part: RunFolder, cut: str = "") -> Path:
        """Write an environment's report of what has been played; ``cut`` says why that is not all."""
        spec, tasks = self._spec, self.tasks(part)
        facts = cast("Mapping[str, JSON]", encode(spec))
        arms = EvalRunner(part, tasks, self._display)
        rows: list[Row] = []
        told: list[str] = []
        for row in self.rows:
            counted = arms.counted(row.name, row.samples or 1)
            if more := len(arms.played(row.name)) - len(counted):
                told.append(
                    f"{row.name}: {more} more episodes are on record, of a batch that did not end. They are "
                    "in no number: those that end first are no fair sample."
                )
            origin = self._agents.origin(row, part, {episode.key for episode in counted})
            expected = SCRIPTS.get(row.script)
            if arm := arms.arm(row.name, self._agents.describe(row), counted, expected, origin):
                rows.append(arm)
                told += self._agents.differences_from_training(row)
        path, _ = build_report(
            part,
            kind,
            self._backend,
            tasks,
            rows,
            differences(spec),
            max_turns=spec.max_turns,
            title=spec.title or f"{kind.id}: comparison on held-out tasks",
            ks=(1, spec.samples) if spec.samples > 1 else (1,),
            config=flat_settings({name: value for name, value in facts.items() if name not in _TABLES}),
            warnings=(
                *((f"The run ended early ({cut}); this is what there is.",) if cut else ()),
                *told,
                *(f"Left out: {many} {why}." for why, many in part.manifest.get("left_out", {}).items()),
            ),
        )
        return path
