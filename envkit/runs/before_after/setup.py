"""Plan a before/after run: size it for this machine, store it in the run folder, read it back."""

from __future__ import annotations

import contextlib
import gc
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from envkit.audit.certificate import certificate_problem
from envkit.env import Env
from envkit.env.taskfile import digest, read_tasks, write_tasks
from envkit.errors import ConfigError, StoreError
from envkit.measure.spec import DEFAULT_SAMPLES
from envkit.models import ModelRef, resolve
from envkit.runs.before_after.plan import DEFAULT_MINUTES, Plan, PlanInputs, plan, require_useful
from envkit.runs.before_after.probe import Lengths, Speed, lengths_of, probe
from envkit.runs.before_after.warm_start import demonstrations, phase_tasks, require_warm_start
from envkit.runs.folder.heldout import require_heldout
from envkit.runs.folder.machine import machine, settle
from envkit.runs.folder.openings import openings
from envkit.runs.folder.provenance import commit, environment_facts, require_unchanged, training_code_digest
from envkit.runs.folder.run_records import environments_of, sources_learned, task_file
from envkit.runs.folder.turns import turns_of
from envkit.runtime.display import Display
from envkit.runtime.store import RunFolder, folder_name
from envkit.sandbox import Lock, SandboxBackend
from envkit.training.checkpoint import copy_adapter, load_adapter
from envkit.training.config import TrainConfig, from_manifest, to_mapping
from envkit.training.demonstration import Demonstration
from envkit.training.learner.heap import release_freed_memory
from envkit.training.learner.memory import (
    choose_cache_mb,
    require_memory,
    tokens_per_forward,
    trained_weights,
)
from envkit.training.policy import Policy
from envkit.training.sft import encode
from envkit.types import JSON, Task

#: ``kind`` in the manifest of such a run.
KIND: Final = "before-after"
#: Tasks of each environment whose texts are measured.
_MEASURED_TASKS: Final = 32
#: Copies of the trained weights on the disk at most, in float32: the warm start's adapter, and three
#: checkpoints with two moments each. Two are kept while a third is written.
_COPIES: Final = 1 + 3 * 3
#: Joins the names of a run's environments.
_JOINER: Final = "+"


@dataclass(frozen=True, slots=True)
class RunSetup:
    """Tasks and sizes of a run on this machine.

    Args:
        plan: the sizes.
        facts: the other fields of the manifest.
        train, heldout: tasks, by environment.
        locks: what the sandboxes of each environment hold.
    """

    plan: Plan
    facts: Mapping[str, Any]
    train: Mapping[type[Env], Sequence[Task]]
    heldout: Mapping[type[Env], Sequence[Task]]
    locks: Mapping[type[Env], Lock]


def prepare(
    config: TrainConfig,
    minutes: float | None,
    train: Mapping[type[Env], Sequence[Task]],
    heldout: Mapping[type[Env], Sequence[Task]],
    *,
    backend: SandboxBackend,
    display: Display,
    command: str,
    adapters: int = 1,
    evaluate: bool = True,
    note: str = "",
    trackers: Sequence[str] = (),
) -> RunSetup:
    """Size a new study for this machine.

    The sizes are fixed here and stored in the manifest, so that a resumed run is the same run. Several
    environments share them equally.

    Args:
        config: the training settings; with ``minutes``, its sizes are replaced.
        minutes: budget of all adapters together, after set-up; ``None`` keeps the sizes of ``config`` and
            evaluates on as many tasks as `DEFAULT_MINUTES` would allow.
        train, heldout: tasks, by environment.
        backend: sandbox backend, to reset a few tasks and measure the length of their texts.
        display: shows the plan.
        command: the command line, for the report.
        adapters: number of adapters, one for each seed, that share the budget.
        evaluate: measure on the held-out tasks before and after training; if False, the run only trains, and
            plays the few episodes of the adapter's claim.
        note: a sentence about the tasks that a reader of the report must see.
        trackers: names of the experiment trackers, which a resumed run is logged to as well.

    Raises:
        TaskFileError: the held-out tasks are not held out.
        ModelError, StoreError: ``warm_start`` is no adapter for this base and these settings.
        ConfigError: ``shaping`` names a check that no environment has.
        UsageError: the budget is too small to show anything on this machine.
    """
    require_checks(config.shaping, train)
    all_train = [task for tasks in train.values() for task in tasks]  # one adapter learns from all
    learned = sources_learned(Path(config.warm_start)) if config.warm_start else ()
    for kind in train:
        require_heldout(heldout[kind], all_train, learned)
    release_freed_memory()  # of mining
    config = replace(config, max_turns=turns_of(train, config.max_turns))
    config, threads = settle(config, minutes, display.say)
    ref = resolve(config.model, display)
    require_warm_start(config, ref)
    # Fixed for the whole run, because they decide which rows are computed together, and so the bits.
    config = replace(config, max_tokens_per_forward=tokens_per_forward(ref, config))
    require_memory(ref, config, adapters=adapters)
    cache_mb = config.kv_cache_mb or choose_cache_mb(ref, config, adapters=adapters)
    config = replace(config, kv_cache_mb=cache_mb)
    # With given sizes and no evaluation, no size depends on the machine.
    timed = evaluate or minutes is not None
    measured = _try(ref, config, train if timed else {}, backend, display)
    gc.collect()  # the measured model, whose parts refer to each other
    release_freed_memory()  # of it, before training loads the model again
    parts = [phase_tasks(tasks, config) for tasks in train.values()]
    sft_tasks, rl_tasks = (sum(map(len, tasks)) for tasks in zip(*parts, strict=True))
    if measured is None:
        sized = Plan(config, heldout_tasks=0, samples=DEFAULT_SAMPLES)
    else:
        available = sum(map(len, heldout.values())) if evaluate else 0
        inputs = PlanInputs(*measured, config, available, sft_tasks, rl_tasks)
        if minutes is None:
            sized = replace(plan(DEFAULT_MINUTES, inputs), train=config, minutes=0.0, step_s=0.0)
        else:
            minutes /= adapters
            require_useful(minutes, inputs, adapters)
            sized = plan(minutes, inputs)
    sizes, tasks_per_env = sized.train, share(sized.heldout_tasks, len(train))
    played = sum(min(tasks_per_env, len(tasks)) for tasks in heldout.values())
    evaluation = f"{played} held-out tasks x {sized.samples}" if evaluate else "no evaluation"
    answers = "an adapter to begin with" if sizes.warm_start else f"{sizes.sft_examples} known answers"
    display.say(
        f"plan: {evaluation}, {answers}, "
        f"{sizes.max_steps} RL steps of {sizes.groups_per_step} x {sizes.num_generations} episodes"
    )
    if sizes.max_steps and sizes.groups_per_step > rl_tasks:
        display.say(f"there are only {rl_tasks} tasks for RL, so each step plays that many groups")
    facts = {
        "evaluate": evaluate,
        "note": note,
        "trackers": [*trackers],
        "command": command,
        "commit": commit(),
        "model": config.model,
        "model_digest": ref.digest,
        "machine": asdict(machine(threads, config.dtype, config.device)),
        "threads": threads,
        "training_code": training_code_digest(),
    }
    if measured is not None:
        facts |= {"speed": asdict(measured[0]), "lengths": asdict(measured[1])}
    return RunSetup(sized, facts, train, heldout, {kind: kind.equip(backend).lock for kind in train})


def require_space(root: Path, config: TrainConfig, adapters: int, display: Display) -> None:
    """Refuse a run whose checkpoints the disk cannot hold.

    Args:
        root: folder of the run folders, which may not exist yet.
        config: settings with a model.
        adapters: number of adapters, one for each seed.
        display: shows a download.

    Raises:
        StoreError: too little space.
    """
    needed = adapters * _COPIES * 4 * trained_weights(resolve(config.model, display), config)
    folder = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if (free := shutil.disk_usage(folder).free) < needed:
        raise StoreError(
            f"{root}: {free / 1e9:.1f} GB are free, and the run's adapters and checkpoints take up to "
            f"{needed / 1e9:.1f} GB; free some, or name a folder on another disk with --root"
        )


def _try(
    ref: ModelRef,
    config: TrainConfig,
    train: Mapping[type[Env], Sequence[Task]],
    backend: SandboxBackend,
    display: Display,
) -> tuple[Speed, Lengths] | None:
    """Load the model, and measure its speed on this machine and the lengths of the environments' texts.

    Nothing is measured for no environments.
    """
    with contextlib.closing(Policy.of(ref, config)) as policy:
        if config.warm_start:
            load_adapter(policy, Path(config.warm_start))  # raises if it has other layers
        if not train:
            return None
        display.say(f"timing the model on this machine, in {config.dtype}")
        speed = probe(policy, display.say)
        shown: list[Demonstration] = []
        for kind, tasks in train.items():
            # Of a harness's chats nothing is known before a model plays; the environment's texts are near.
            known = kind.graded_as()
            turns = config.max_turns if known is kind else known.max_turns
            shown += demonstrations(known, tasks[:_MEASURED_TASKS], backend, turns)
        examples = [encode(policy.renderer, one, config.max_context_length) for one in shown]
        return speed, lengths_of(examples, shown)


def start(root: Path, study: RunSetup) -> RunFolder:
    """Create the run folder of a new study."""
    study = with_openings(root, study)
    with RunFolder.making(root, KIND, _manifest(study)) as run:
        _fill(run, study)
    return run


def with_openings(root: Path, study: RunSetup) -> RunSetup:
    """Add to a new study's facts how often its test tasks were opened by runs in a folder."""
    opened = openings(root, {kind.id: tasks for kind, tasks in study.heldout.items()})
    return replace(study, facts={**study.facts, **opened})


def start_part(run: RunFolder, study: RunSetup) -> None:
    """Create the run folder of one seed inside the folder of all seeds; its id is ``<run>/seed-<seed>``."""
    name = f"seed-{study.plan.train.seed}"
    ids = {"id": f"{run.id}/{name}", "part_of": run.id}
    _fill(run.part(name, {**_manifest(study), **ids}), study)


def _manifest(study: RunSetup) -> dict[str, JSON]:
    kinds = [*study.train]
    return {
        "kind": KIND,
        "environment": _JOINER.join(kind.id for kind in kinds),
        "environments": [kind.id for kind in kinds],
        **study.facts,
        "plan": {**asdict(study.plan), "train": to_mapping(study.plan.train)},
        **(_of_environment(study, kinds[0]) if len(kinds) == 1 else {}),
    }


def _of_environment(study: RunSetup, kind: type[Env]) -> dict[str, JSON]:
    tasks = {"train": digest(study.train[kind]), "heldout": digest(study.heldout[kind])}
    return {
        "environment": kind.id,
        "unaudited": certificate_problem(kind, study.locks[kind], study.plan.train.max_turns),
        **environment_facts(kind, study.locks[kind]),
        "tasks": tasks,
    }


def _fill(run: RunFolder, study: RunSetup) -> None:
    """Write the task files, and the adapter that RL begins with.

    With several environments, each gets its own folder for tasks and report.
    """
    shared = {key: study.facts[key] for key in ("command", "commit", "model", "model_digest", "machine")}
    if len(study.train) > 1:
        for kind in study.train:
            manifest = {"kind": f"{KIND}-part", **shared, **_of_environment(study, kind)}
            run.part(folder_name(kind.id), manifest)
    for kind, part in parts_of(run, [*study.train]).items():
        # The run's own copies, so that it can resume after files have moved or the miner has changed.
        for name, tasks in (("train", study.train[kind]), ("heldout", study.heldout[kind])):
            write_tasks(task_file(part.path, name), tasks, study.plan.train.seed)
    if warm_start := study.plan.train.warm_start:
        copy_adapter(Path(warm_start), run.path / "sft")


def parts_of(run: RunFolder, kinds: Sequence[type[Env]]) -> dict[type[Env], RunFolder]:
    """Open the folder of each environment's tasks and report; with one environment, the run's folder."""
    if len(kinds) == 1:
        return {kinds[0]: run}
    return {kind: RunFolder.open(run.path / folder_name(kind.id)) for kind in kinds}


def reopen(run: RunFolder, kinds: Sequence[type[Env]], backend: SandboxBackend) -> RunSetup:
    """Read the study of an existing run; its ``facts`` are the whole manifest.

    Raises:
        StoreError: environments, their code, packages or tasks have changed since the run began; the manifest
            is damaged or was edited; or the folder holds another kind of run.
    """
    manifest = run.manifest
    if (found := manifest.get("kind")) != KIND:
        raise StoreError(f"{run.path} is a run of kind {found!r}; expected one of `envkit train` or `demo`")
    if (recorded := environments_of(run)) != (given := [kind.id for kind in kinds]):
        raise StoreError(
            f"{run.path} began with {_JOINER.join(recorded)}; found {_JOINER.join(given)}: resume it with "
            "the environments that it began with"
        )
    run.require_unedited()
    try:
        sized = manifest["plan"]
        # Runs older than the setting get one size, so that they resume to the same bits each time.
        settings = {"kv_cache_mb": 2048, **sized["train"]}
        sizes = {name: sized[name] for name in ("heldout_tasks", "samples", "eval_temperature")}
        # Older runs keep the number of steps that they were planned with.
        minutes, step_s = (sized["minutes"], sized["step_s"]) if "minutes" in sized else (0.0, 0.0)
        planned = Plan(
            from_manifest(settings, str(run.path / "manifest.json")),
            **sizes,
            minutes=float(minutes),
            step_s=float(step_s),
        )
        facts = {name: manifest[name] for name in ("threads", "model", "model_digest", "machine", "command")}
        if not isinstance(facts["threads"], int) or not isinstance(facts["model"], str):
            raise ValueError("threads must be an integer, and model a string")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{run.path / 'manifest.json'}: damaged ({error!r}); restore it, or start a new run"
        ) from error
    parts = parts_of(run, kinds)
    locks = {kind: kind.equip(backend).lock for kind in parts}
    for kind, part in parts.items():
        require_unchanged(kind, locks[kind], part)
    return RunSetup(
        planned,
        manifest,
        {kind: _tasks(part, "train") for kind, part in parts.items()},
        {kind: _tasks(part, "heldout") for kind, part in parts.items()},
        locks,
    )


def _tasks(part: RunFolder, name: str) -> list[Task]:
    tasks = read_tasks(task_file(part.path, name))
    digests = part.manifest.get("tasks")
    recorded = str(cast("dict[str, str]", digests).get(name)) if isinstance(digests, dict) else "none"
    if (found := digest(tasks)) != recorded:
        raise StoreError(
            f"{task_file(part.path, name)}: the run began with tasks {recorded[:12]}, found {found[:12]}; "
            "restore the file, or start a new run"
        )
    return tasks


def require_checks(shaping: Mapping[str, float], kinds: Iterable[type[Env]]) -> None:
    """Raise if ``shaping`` names a check that no environment runs in training.

    Raises:
        ConfigError: a name is not a check, or the check is held out.
    """
    checks = [check for kind in kinds for check in kind.checks]
    in_training = {check.name for check in checks if not check.held_out}
    held_out = {check.name for check in checks if check.held_out}
    if unknown := sorted(shaping.keys() - in_training):
        what = "a held-out check, which training must not see" if unknown[0] in held_out else "no check here"
        raise ConfigError(
            f"shaping names {unknown[0]!r}, {what}; expected one of: {', '.join(sorted(in_training))}"
        )


def share(tasks: int, environments: int) -> int:
    """Largest number of a run's tasks per environment; at least 1."""
    return max(tasks // environments, 1)
