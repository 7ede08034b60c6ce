"""Train adapters: `train`, `resume_train`, and `sft` for the supervised warm start alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envkit.errors import ConfigError, Stopped, UsageError
from envkit.runs.common import (
    DEFAULT_ENVIRONMENT,
    RUNS,
    Tasks,
    absolute_if_path,
    command_of,
    isolated_backend,
    load_tasks,
    load_train_tasks,
    require_train_split,
    short_tasks,
)
from envkit.runs.interrupts import stopping_on_signal
from envkit.runs.results import SFTResult, TrainResult, read_report
from envkit.runs.rich_display import DisplayChoice, open_display
from envkit.training.trackers import DEFAULT as DEFAULT_TRACKERS
from envkit.training.trackers import resolve as resolve_trackers

if TYPE_CHECKING:
    from envkit.env import Env
    from envkit.runtime.display import Display
    from envkit.runtime.store import RunFolder
    from envkit.sandbox import SandboxBackend
    from envkit.training.config import TrainConfig
    from envkit.training.trackers import NamedTracker, Tracker

#: Folders that a run creates inside its own. With several environments, none may have such a name.
_RUN_FOLDERS = frozenset({"checkpoints", "sft", "sft-checkpoints", "tasks", "tensorboard", "wandb"})


def train(
    environments: str | Sequence[str] | None = None,
    *,
    config: TrainConfig | Mapping[str, Any] | Path | str | None = None,
    minutes: float | None = None,
    seeds: int | Sequence[int] | None = None,
    tasks: Tasks | None = None,
    heldout_tasks: Tasks | None = None,
    split: str = "heldout",
    max_task_chars: int | None = None,
    model: Path | str | None = None,
    warm_start: Path | str | None = None,
    control: str | None = None,
    backend: str | None = None,
    engine: str | None = None,
    sandbox: SandboxBackend | str = "auto",
    allow_unsafe: bool = False,
    allow_unaudited: bool = False,
    evaluate: bool = True,
    trackers: Sequence[str | Tracker] = DEFAULT_TRACKERS,
    root: Path | str = RUNS,
    display: DisplayChoice = "rich",
    command: str | None = None,
) -> TrainResult:
    """Fine-tune a small model with LoRA RL and report it before and after on held-out tasks.

    The first Ctrl-C stops the run at the next safe point and reports what there is; a second one raises
    `KeyboardInterrupt`. Either way `resume_train` continues the run.

    Args:
        environments: registered names; several train one adapter together. By default those of ``mix`` in
            ``config``, or the code editor.
        config: a `TrainConfig`, its fields by name, or a TOML file of them; by default all defaults.
        minutes: budget after set-up, which chooses the numbers of examples, steps and held-out tasks; several
            seeds share it. ``None`` keeps the sizes of ``config``.
        seeds: seed of training's random draws; several train an adapter each, side by side.
        tasks: tasks to train on, or their file; by default the environment's own.
        heldout_tasks: tasks to measure on, or their file; by default the environment's own.
        split: which of the environment's own tasks to measure on: ``"heldout"`` to choose settings by, or
            ``"test"`` for a final report; each opening of test tasks is counted.
        max_task_chars: train and measure on short tasks only: those whose prompt and files have together at
            most so many characters.
        model: model id, folder or hub id; by default the one of ``config``.
        warm_start: an adapter's folder, such as another run's ``sft``. RL begins with it, in place of a warm
            start of its own.
        control: what of the model is trained: ``"all-linear"``, ``"attention"``, ``"mlp"``, ``"steering"``
            or ``"full"``; by default as in ``config``. Learning rates must be chosen anew for the last two.
        backend: trainer that takes the steps, ``"envkit"`` or ``"trl"``; by default as in ``config``.
        engine: engine that samples, ``"torch"`` or ``"vllm"``; by default as in ``config``.
        sandbox: a backend or its registered name; ``"auto"`` takes the best one of this machine.
        allow_unsafe: accept a sandbox that does not isolate.
        allow_unaudited: accept an environment without a valid certificate, or with one of other packages or
            of fewer turns than this run has.
        evaluate: measure on the held-out tasks before and after training.
        trackers: experiment trackers to log to: ``"tensorboard"``, ``"wandb"``, ``"mlflow"``, ``"trackio"``,
            or functions of your own; see `envkit.training.trackers`. One that fails while the run trains is
            left out from then on. `resume_train` takes those that have a name again.
        root: folder in which the run folder is created.
        display: ``"rich"``, ``"quiet"`` or a display of your own.
        command: command to show in the reports; by default this call.

    Raises:
        UsageError: bad input, found before any long work.
        EnvkitError: the run failed; see `envkit.errors`.
    """
    from envkit.audit.certificate import fewer_turns, require_certified
    from envkit.env import registry
    from envkit.models import require_training

    require_training()  # what follows imports PyTorch
    from envkit.runs.before_after import seeds as before_after_seeds
    from envkit.runs.before_after import setup as before_after_setup
    from envkit.runs.before_after.plan import require_minutes
    from envkit.runs.folder.turns import turns_of

    if split not in ("heldout", "test") or (split == "test" and heldout_tasks is not None):
        raise UsageError(f"split is {split!r}; expected 'heldout', or 'test' without held-out tasks")
    chosen = [seeds] if isinstance(seeds, int) else list(seeds or ())
    if minutes is not None:
        require_minutes(minutes, len(chosen))
    settings = train_config(
        config,
        seed=chosen[0] if chosen else None,
        model=model,
        warm_start=warm_start,
        sft_examples=None if warm_start is None else 0,
        control=control,
        backend=backend,
        engine=engine,
    )
    names = _names(environments, settings)
    _require_distinct(names, chosen)
    if len(names) > 1 and (tasks is not None or heldout_tasks is not None):
        raise UsageError("task files are for one environment; several train on their own tasks")
    kinds = [registry.environment(name) for name in names]
    ids = {name: kind.id for name, kind in zip(names, kinds, strict=True)}  # a harness's file is not its id
    settings = replace(settings, mix=tuple(replace(each, env=ids[each.env]) for each in settings.mix))
    harnesses = [kind.id for kind in kinds if kind.harness is not None]
    if harnesses and settings.backend == "trl":
        raise UsageError(
            f"backend 'trl' cannot train {harnesses[0]}: it reads one conversation an episode, and a program "
            "may begin others; use backend 'envkit'"
        )
    if harnesses and settings.is_sft_alone:
        raise UsageError(f"{_nothing_to_imitate(harnesses[0])}; set max_steps, so that RL trains it")
    if without_warm_start := bool(harnesses and settings.sft_examples):
        settings = replace(settings, sft_examples=0)
    before_after_setup.require_checks(settings.shaping, kinds)
    turns = turns_of(kinds, settings.max_turns)  # raises before tasks are made
    resolved = resolve_trackers(trackers)
    if len(chosen) > 1:
        before_after_seeds.configurations(settings, chosen)
    if not allow_unaudited:
        for kind in kinds:
            require_certified(kind, max_turns=turns)  # before anything is installed
    with open_display(display) as progress:
        if without_warm_start:
            named = ", ".join(harnesses)
            progress.say(
                f"no warm start: {named} has no known answers to imitate; --warm-start takes an adapter"
            )
        sandbox_backend = isolated_backend(sandbox, progress, allow_unsafe=allow_unsafe)
        settings = with_model(settings, minutes, progress)
        before_after_setup.require_space(Path(root), settings, max(len(chosen), 1), progress)
        for kind in kinds:
            lock = kind.equip(sandbox_backend).lock
            if not allow_unaudited:
                require_certified(kind, lock, turns)
            if fewer := fewer_turns(kind, lock, turns):
                progress.say(fewer)
        train_tasks = {kind: load_tasks(kind, tasks, "train", sandbox_backend, progress) for kind in kinds}
        for found in train_tasks.values():
            require_train_split(found, tasks)
        measured = {kind: load_tasks(kind, heldout_tasks, split, sandbox_backend, progress) for kind in kinds}
        note = ""
        if max_task_chars is not None:
            train_tasks, to_train = short_tasks(train_tasks, max_task_chars)
            measured, to_measure = short_tasks(measured, max_task_chars)
            note = (
                f"Only tasks of at most {max_task_chars} characters are used: {to_train} to train on, "
                f"{to_measure} held out."
            )
            progress.say(note)
        planned = before_after_setup.prepare(
            settings,
            minutes,
            train_tasks,
            measured,
            backend=sandbox_backend,
            display=progress,
            command=command or command_of("train", repr(names[0] if len(names) == 1 else names)),
            adapters=max(len(chosen), 1),
            evaluate=evaluate,
            note=note,
            trackers=[tracker for tracker in trackers if isinstance(tracker, str)],
        )
        if len(chosen) > 1:
            run = before_after_seeds.start(Path(root), planned, chosen)
        else:
            run = before_after_setup.start(Path(root), planned)
        return _run(run, kinds, sandbox_backend, progress, resolved)


def resume_train(
    run: Path | str,
    *,
    sandbox: SandboxBackend | str = "auto",
    allow_unsafe: bool = False,
    trackers: Sequence[str | Tracker] | None = None,
    display: DisplayChoice = "rich",
) -> TrainResult:
    """Continue a training run that was interrupted, from its last checkpoint and with its own settings.

    Args:
        run: the run folder.
        sandbox: a backend or its registered name.
        allow_unsafe: accept a sandbox that does not isolate.
        trackers: as for `train`; by default the named ones that the run began with.
        display: ``"rich"``, ``"quiet"`` or a display of your own.

    Raises:
        StoreError: not a training run, or its tasks, weights, environments or their packages have changed.
        EnvkitError: the run failed; see `envkit.errors`.
    """
    from envkit.env import registry
    from envkit.models import require_training
    from envkit.runtime.store import RunFolder

    require_training()
    from envkit.runs.folder.run_records import environments_of

    folder = RunFolder.open(Path(run))
    kinds = [registry.environment(name) for name in environments_of(folder)]
    # Runs of older versions named none.
    began_with = folder.manifest.get("trackers", DEFAULT_TRACKERS)
    resolved = resolve_trackers(began_with if trackers is None else trackers)
    with open_display(display) as progress:
        sandbox_backend = isolated_backend(sandbox, progress, allow_unsafe=allow_unsafe)
        return _run(folder, kinds, sandbox_backend, progress, resolved)


def sft(
    output: Path | str,
    *,
    environment: str | None = None,
    config: TrainConfig | Mapping[str, Any] | Path | str | None = None,
    examples: int | None = None,
    tasks: Tasks | None = None,
    max_task_chars: int | None = None,
    model: Path | str | None = None,
    sandbox: SandboxBackend | str = "auto",
    display: DisplayChoice = "rich",
) -> SFTResult:
    """Run only the supervised warm start: imitate the oracle on train tasks, save the adapter.

    As in `train`, the tasks are those of a third of the sources: RL that begins with the adapter
    (``warm_start``) takes the others. With ``max_steps = 0`` in ``config``, no RL follows, and tasks of all
    sources are imitated.

    Args:
        output: the adapter folder to write; it must not exist.
        environment: its registered name; by default the one of ``mix`` in ``config``, or the code editor.
        config: as for `train`.
        examples: oracle answers to imitate, at least one batch; by default as in ``config``.
        tasks: tasks of the split ``train``, or their file; by default the environment's own.
        max_task_chars: leave out tasks whose prompt and files have together more characters.
        model: model id, folder or hub id; by default the one of ``config``.
        sandbox: a backend or its registered name.
        display: ``"rich"``, ``"quiet"`` or a display of your own.

    Raises:
        UsageError: bad input, found before any long work.
        EnvkitError: training failed; see `envkit.errors`.
    """
    from envkit.env import registry
    from envkit.models import require_training

    require_training()
    from envkit.runs.before_after.warm_start import warm_start

    folder = Path(output)
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} exists; choose another folder, nothing is overwritten")
    settings = train_config(config, model=model, sft_examples=examples)
    name = one_environment(environment, settings)
    kind = registry.environment(name)
    if kind.harness is not None:
        raise UsageError(_nothing_to_imitate(name))
    if not settings.sft_examples:
        raise ConfigError(f"sft_examples is 0; it must be at least {settings.sft_batch_size} here")
    with open_display(display) as progress:
        sandbox_backend = isolated_backend(sandbox, progress)
        settings = with_model(settings, None, progress)
        found = load_train_tasks(kind, tasks, max_task_chars, sandbox_backend, progress)
        message = "stopping: no adapter is written before the last step; Ctrl-C again ends at once"
        with stopping_on_signal(progress.say, message) as request:
            try:
                losses = warm_start(
                    folder, settings, kind, found, sandbox_backend, progress, request.should_stop
                )
            except Stopped:
                losses = []
    return SFTResult(folder if losses else None, tuple(losses), request.signal)


def _nothing_to_imitate(name: str) -> str:
    return f"{name} has no known answers to imitate: nobody knows what its program asks"


def _run(
    run: RunFolder,
    kinds: Sequence[type[Env]],
    sandbox: SandboxBackend,
    display: Display,
    trackers: Sequence[NamedTracker],
) -> TrainResult:
    """Run all phases of a run that are not finished."""
    from envkit.runs.before_after import run as before_after
    from envkit.runs.before_after import seeds as before_after_seeds

    display.say(f"run folder: {run.path}")
    message = (
        f"stopping: finished episodes and the last checkpoint stay in {run.path}; continue with: "
        f"envkit train --resume {run.path}; Ctrl-C again ends at once"
    )
    work = (
        before_after_seeds.MultiSeedStudy
        if run.manifest.get("kind") == before_after_seeds.KIND
        else before_after.BeforeAfter
    )
    with stopping_on_signal(display.say, message) as request:
        pages = work(run, kinds, sandbox, display, request.should_stop, trackers=trackers).run()
    return TrainResult(run.path, _adapters(run), tuple(map(read_report, pages)), request.signal)


def _adapters(run: RunFolder) -> tuple[Path, ...]:
    """The newest checkpoint of a run, or of each of its seeds in their order; else its warm start."""
    from envkit.training.checkpoint import CheckpointStore

    seeds: list[int] | None = run.manifest.get("seeds")
    folders = [run.path] if seeds is None else [run.path / f"seed-{seed}" for seed in seeds]
    found: list[Path] = []
    for folder in folders:
        checkpoints = CheckpointStore(folder / "checkpoints")
        steps = checkpoints.steps()
        adapter = checkpoints.path(steps[-1]) if steps else folder / "sft"
        if adapter.exists():
            found.append(adapter)
    return tuple(found)


def _names(environments: Sequence[str] | str | None, config: TrainConfig) -> list[str]:
    """The environments to train on: the given ones, else those of ``mix``.

    Raises:
        UsageError: both name some, and not the same.
    """
    mixed = [each.env for each in config.mix]
    if environments is None:
        return mixed or [DEFAULT_ENVIRONMENT]
    given = [environments] if isinstance(environments, str) else list(environments)
    if mixed and {*given} != {*mixed}:
        raise UsageError(
            f"mix names {', '.join(mixed)}, and {', '.join(given)} is asked for; name the environments once"
        )
    return given


def one_environment(environment: str | None, config: TrainConfig) -> str:
    """Return the environment of a call that plays one: the given one, else the one of ``mix``.

    Raises:
        UsageError: none is given, and ``mix`` names several.
    """
    mixed = [each.env for each in config.mix]
    if environment is None and len(mixed) > 1:
        raise UsageError(f"mix names {', '.join(mixed)}, and one environment is played; name one with --env")
    return environment or next(iter(mixed), DEFAULT_ENVIRONMENT)


def with_model(config: TrainConfig, minutes: float | None, display: Display) -> TrainConfig:
    """Choose the model and check it, before tasks are made, which may take minutes.

    Raises:
        ModelError: there is no such model or device, or ``warm_start`` does not belong to the model.
    """
    from envkit.models import resolve
    from envkit.runs.before_after.warm_start import require_warm_start
    from envkit.runs.folder.machine import resolve_model
    from envkit.training.policy import find_device

    find_device(config.device)
    config = resolve_model(config, minutes, display.say)
    require_warm_start(config, resolve(config.model, display))
    return config


def _require_distinct(names: Sequence[str], seeds: Sequence[int]) -> None:
    """Raise if two environments or seeds would share a folder.

    Raises:
        UsageError: one is given twice, or an environment is named like a folder of the run.
    """
    if not names:
        raise UsageError("no environment is named; expected at least one, see: envkit list")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"environment {twice[0]!r} is named twice; name each one once")
    if len(names) > 1 and (clash := _RUN_FOLDERS.intersection(names)):
        raise UsageError(f"environment {min(clash)!r} is named like a folder of the run; train on it alone")
    if repeated := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise UsageError(f"seed {repeated[0]} is given twice; give each one once")


def train_config(
    config: TrainConfig | Mapping[str, Any] | Path | str | None, **overrides: Any
) -> TrainConfig:
    """Read the configuration, then apply the values that the caller gave."""
    from envkit.runs.folder.run_records import base_of
    from envkit.training.config import TrainConfig, from_mapping, from_toml, to_mapping

    if isinstance(config, TrainConfig):
        base = config
    elif isinstance(config, str | Path):
        base = from_toml(Path(config))
    else:
        base = from_mapping(config or {}, "config")
    given = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in overrides.items()
        if value is not None
    }
    settings = from_mapping({**to_mapping(base), **given}, "arguments")
    model = settings.model
    if not settings.warm_start:
        return replace(settings, model=absolute_if_path(model))
    warm_start = Path(settings.warm_start).resolve()
    if not (warm_start / "adapter_config.json").is_file():
        raise UsageError(f"{warm_start} has no adapter_config.json; expected the folder of an adapter")
    if model == "auto":
        model = base_of([warm_start]) or model
    return replace(settings, model=absolute_if_path(model), warm_start=str(warm_start))
