"""Prepare a benchmark: make its tasks, check them, and store all that determines the run in its folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, cast

from envkit.agents.cards import load_card
from envkit.agents.recorded import read_recorded, read_usage, write_recorded
from envkit.env import Env, registry
from envkit.env.authored import ImportedTasks
from envkit.env.taskfile import digest, write_tasks
from envkit.errors import ConfigError, SandboxError, UsageError
from envkit.measure.spec import EVALUATION_SEED, SCRIPTS, AgentSpec, BenchSpec, EnvironmentSpec
from envkit.models import require_training, resolve, tokenizer_at_hand, weights_digest
from envkit.models.adapter_folder import require_fit
from envkit.runs.benchmark.agent_factory import model_of, outputs, require_usable, runs_here, tasks_to_show
from envkit.runs.benchmark.validate_tasks import validate_tasks
from envkit.runs.folder.heldout import require_heldout
from envkit.runs.folder.machine import free_threads, machine, resolve_dtype, use_threads
from envkit.runs.folder.openings import openings
from envkit.runs.folder.provenance import commit, environment_facts
from envkit.runs.folder.run_records import sources_learned
from envkit.runtime.display import Display
from envkit.runtime.plain import encode
from envkit.runtime.prices import load_prices
from envkit.runtime.store import RunFolder, folder_name, write_atomic
from envkit.sandbox import SandboxBackend
from envkit.training.config import TrainConfig
from envkit.types import JSON, Usage

#: ``kind`` in the manifest of such a run.
KIND: Final = "bench"
#: Files of a run: an environment's tasks, and the prices that the user gave.
TASKS_FILE, PRICES_FILE = "tasks.jsonl", "prices.toml"
#: Reasons to leave out an imported item, by the control agent whose episode did not end as it must.
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
    priced_machine: str | None = None,
) -> RunFolder:
    """Create a run folder with everything that determines the run: spec, tasks, recorded outputs, digests.

    Args:
        root: parent of the run folders.
        spec: the environments and agents to measure.
        backend: sandbox backend, for environments that run code to make their tasks.
        display: shows progress.
        command: the command line, for the report.
        prices: a TOML file of prices on top of the shipped table.
        priced_machine: machine whose hourly price local rows pay.

    Raises:
        UsageError: an environment, adapter, card, price or set of outputs does not exist, or tasks are not
            held out. No folder is created in that case.
        ModelError: a model cannot be had, an adapter is of another base, or torch finds no GPU.
        MissingExtraError: a model runs here, and the extra ``train`` is not installed.
    """
    table = load_prices(prices)
    spec = _filled_in(spec)
    _require_scripts(spec)
    for row in spec.agents:
        require_usable(row, table)  # before tasks are made and controls are played, which takes minutes
    threads, dtype = _compute(spec, display)
    kinds = _kinds(spec)
    if any(kind.harness is not None for kind in kinds):
        _require_prompts_of_its_own(spec)
    models = _models(spec, display)
    _require_shots(spec, backend, display)
    played = [
        (environment.name, kind, load_tasks(kind, environment, backend, display, spec.agents))
        for environment, kind in zip(spec.environments, kinds, strict=True)
    ]
    recorded = {
        (name, row.name): _recorded(row, imported)
        for name, _, imported in played
        for row in spec.agents
        if row.recorded
    }
    shared = {
        "command": command,
        "commit": commit(),
        "model": ", ".join(models),
        "model_digest": ", ".join(models.values()),
        "machine": asdict(machine(threads, dtype, spec.device if models else "cpu")),
    }
    facts: Mapping[str, JSON] = {
        "kind": KIND,
        **shared,
        "spec": cast("Mapping[str, str]", encode(spec)),
        "threads": threads,
        "models": models,
        "cards": {row.name: asdict(load_card(row.card)) for row in spec.agents if row.card},
        "adapters": {row.name: weights_digest(Path(row.adapter)) for row in spec.agents if row.adapter},
        "priced_machine": priced_machine,
        "tokenizer": tokenizer_at_hand() if any(row.recorded for row in spec.agents) else "",
        **openings(root, {name: imported.tasks for name, _, imported in played}),
    }
    with RunFolder.making(root, KIND, facts) as run:
        if prices:  # a copy, because the user may change or delete the file
            write_atomic(run.path / PRICES_FILE, prices.read_bytes())
        for name, kind, imported in played:
            digests = {
                **environment_facts(kind, kind.equip(backend).lock),
                "tasks": digest(imported.tasks),
            }
            left_out = dict(imported.left_out)
            manifest: Mapping[str, JSON] = {"kind": f"{KIND}-part", **shared, **digests, "left_out": left_out}
            part = run.part(folder_name(name), manifest)
            write_tasks(part.path / TASKS_FILE, imported.tasks, 0)
            for row in spec.agents:
                if row.recorded:
                    write_recorded(outputs(part, row), *recorded[name, row.name])
    return run


def _require_prompts_of_its_own(spec: BenchSpec) -> None:
    """Refuse rows that would change the prompts of a harness.

    Raises:
        ConfigError: a row has a system message or shots.
    """
    for row in spec.agents:
        if row.system:
            raise ConfigError(f"agent {row.name}: a harness writes its own system message; leave system out")
        if row.shots:
            raise ConfigError(f"agent {row.name}: a harness has no solved tasks to show; leave shots out")


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
    path = run.path / PRICES_FILE
    return path if path.exists() else None


def priced_machine_of(run: RunFolder) -> str | None:
    """Return the machine whose hourly price a run's local rows pay, if it was named."""
    found = run.manifest.get("priced_machine")
    return None if found is None else str(found)


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


def _compute(spec: BenchSpec, display: Display) -> tuple[int, str]:
    """Return threads and dtype for local models. Without any, PyTorch is not imported.

    Raises:
        ModelError: torch finds no such device.
        MissingExtraError: PyTorch is not installed.
    """
    if not any(map(runs_here, spec.agents)):
        return len(os.sched_getaffinity(0)), "no model"
    require_training()
    from envkit.training.policy import find_device

    find_device(spec.device)
    threads = use_threads(free_threads(display.say))
    return threads, resolve_dtype(TrainConfig(device=spec.device), display.say).dtype


def _models(spec: BenchSpec, display: Display) -> dict[str, str]:
    """Find or fetch the local models; returns their digests by name.

    Raises:
        ModelError: there is no such model, or an adapter does not belong to its own.
    """
    local = [row for row in spec.agents if runs_here(row)]
    models = {model: resolve(model, display) for model in dict.fromkeys(map(model_of, local))}
    for row in local:
        if row.adapter:
            require_fit(Path(row.adapter), models[model_of(row)])
    return {model: ref.digest for model, ref in models.items()}


def _require_shots(spec: BenchSpec, backend: SandboxBackend, display: Display) -> None:
    """Raise if an environment has fewer train tasks than a row is shown.

    Raises:
        ConfigError: see above.
    """
    most = max(spec.agents, key=lambda row: row.shots)
    if most.shots:
        for kind in _kinds(spec):
            tasks_to_show(most, kind, kind.equip(backend), display)


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
    backend = kind.equip(backend)  # before any work, because packages may have to be installed
    format_name, colon, path = spec.tasks.partition(":")
    is_published = bool(colon) and not Path(spec.tasks).exists()
    if not spec.tasks:
        imported = ImportedTasks(tuple(kind.tasks_of(spec.split, backend, display=display)))
    elif is_published:
        imported = kind.import_tasks(format_name, Path(path))
    else:
        imported = ImportedTasks(tuple(registry.read_tasks_for(kind, Path(spec.tasks))))
    for row in rows:
        _require_recorded(row, imported)  # before the control agents play, which takes minutes
    tasks, left_out = imported.tasks, Counter(imported.left_out)
    if (most := spec.max_task_chars) is not None:
        tasks = tuple(task for task in tasks if task.chars <= most)
        if too_long := len(imported.tasks) - len(tasks):
            left_out[f"tasks of more than {most} characters"] = too_long
    tasks = tasks[: spec.limit]
    learned = [sources_learned(Path(row.adapter)) for row in rows if row.adapter]
    require_heldout(tasks, learned=frozenset[str]().union(*learned))
    if is_published:
        # With the run's own seed, so that its control episodes find these grades in the cache.
        faults = validate_tasks(kind, tasks, backend, display, seed=EVALUATION_SEED)
        if void := next((fault for fault in faults if fault.void), None):
            raise SandboxError(f"{spec.tasks}: {void}; start again")
        unfit = {fault.task: _UNFIT[fault.agent] for fault in reversed(faults)}  # the oracle's overrides
        left_out.update(unfit.values())
        tasks = tuple(task for task in tasks if task.id not in unfit)
    for reason, count in left_out.items():
        display.say(f"{spec.tasks or kind.id}: left out {count} {reason}")
    if not tasks:
        raise UsageError(f"{spec.tasks or kind.id}: there are no tasks that {kind.id} can pose")
    return ImportedTasks(tasks, imported.recorded, left_out)


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
            f"{len(imported.tasks)} tasks, such as {missing[0]}"
        )
    return {task.id: texts[task.id] for task in imported.tasks}, usage
